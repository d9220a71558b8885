"""Which parts can be trained: `TASKS` maps a recipe's task to its class, imported on use."""

import importlib
from typing import cast

import torch

from soundstage.training.loop import Task
from soundstage.training.recipe import Recipe

TASKS: dict[str, str] = {
    "video_vae": "soundstage.training.tasks.video_vae:VideoVAETask",
    "audio_vae": "soundstage.training.tasks.audio_vae:AudioVAETask",
    "vocoder": "soundstage.training.tasks.vocoder:VocoderTask",
    "transformer": "soundstage.training.tasks.transformer:TransformerTask",
    "distil": "soundstage.training.tasks.distil:DistilTask",
}


def build_task(recipe: Recipe, device: torch.device) -> Task:
    """Make the task that a recipe names, with freshly initialised weights that depend only on its seed."""
    module, name = TASKS[recipe.task].split(":")
    torch.manual_seed(recipe.seed)
    return cast(Task, getattr(importlib.import_module(module), name)(recipe, device))
