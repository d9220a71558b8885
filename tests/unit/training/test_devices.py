"""A training step stays on the device of its network, which shows on a GPU only: `meta` stands for one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx.experimental._config

from one_device import GPU, OneDevice
from soundstage.core.config import load_toml
from soundstage.training.clips import ClipBatch, Pair
from soundstage.training.ema import EMA
from soundstage.training.optim import build_optimizers
from soundstage.training.recipe import Recipe
from soundstage.training.tasks import transformer
from soundstage.training.tasks.registry import build_task

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Move the task of the short plan to the GPU that `meta` stands for."""
    monkeypatch.setattr(torch.fx.experimental._config, "meta_nonzero_assume_all_nonzero", True)
    monkeypatch.setattr(transformer, "noise_like", lambda clean, generator: torch.randn_like(clean))
    files = [f"{key}=embedded" for key in ("init", "settings.video_vae", "settings.audio_vae")]
    small = ["compile=false", "data.num_frames=17", "data.pool_size=0", "settings.feature_power=0.0"]
    recipe = load_toml(Recipe, RECIPES / "transformer.toml", [*files, *small])
    task: Any = build_task(recipe, torch.device("cpu"))
    for module in (task.modules["loss"], task.clips.video_vae, task.clips.audio_vae):
        module.to(GPU)
    for owner in (task, task.clips, task.clips.world, task.clips.mels.world):
        owner.device = GPU
    task.clips.positions = Pair(*(table.to(GPU) for table in task.clips.positions))
    with OneDevice():
        yield task


def test_a_step_of_the_transformer_stays_on_its_device(task: Any) -> None:
    product = task.modules["loss"]
    clips: ClipBatch = task.clips.encode(seed=5, count=2)
    assert clips.video.is_meta
    assert clips.audio.is_meta
    sigmas = task._draw_sigmas(2, torch.Generator().manual_seed(0))
    keep = (torch.arange(clips.video.shape[1], device=GPU) < task.clips.frame_tokens).expand(2, -1)
    alone = [transformer.ISOLATED, transformer.Perturbation()]
    errors = task._weigh(task._errors(clips, clips.captions, sigmas, torch.Generator(), keep, alone))
    video = transformer.weighted_mean(errors.video, transformer.soft_weights(sigmas.video, 0.4))
    reading, right = task._read(3, "train")
    (video + errors.audio.mean() + reading).backward()
    assert all(param.grad.is_meta for param in product.parameters() if param.grad is not None)
    average = EMA(product, 0.9)
    for optimizer in build_optimizers(product, task.recipe.optim, in_half=True):
        optimizer.step()
    average.update(product, 1)
    assert right.is_meta


def test_the_stand_in_refuses_what_a_gpu_would() -> None:
    with OneDevice(), pytest.raises(RuntimeError, match="on cpu and meta"):
        torch.ones(2) + torch.ones(2, device=GPU)
