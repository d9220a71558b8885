"""Latents that matter more to the picture are larger, if a recipe asks for it."""

from pathlib import Path

import torch
from torch import nn

from soundstage.core.config import load_toml
from soundstage.training.recipe import Recipe
from soundstage.training.tasks.video_vae import VideoVAETask, channel_effects

RECIPE = Path(__file__).parents[3] / "recipes" / "video_vae.toml"
SMALL = ("settings.num_statistics_clips=2", "settings.principal_start_clips=4", "data.num_frames=9")


class Weigh(nn.Module):
    """Show channel k with weight k + 1."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(1, latents.shape[1] + 1).view(1, -1, 1, 1, 1)
        return (latents * weights).sum(1, keepdim=True)


def test_the_effect_of_a_channel_is_what_holding_it_changes():
    latents = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    effects = channel_effects(Weigh(), latents, torch.zeros(3))
    expected = latents.square().mean(dim=(0, 2, 3, 4)).sqrt() * torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(effects, expected)


def deviations(tilt: float) -> torch.Tensor:
    recipe = load_toml(Recipe, RECIPE, [*SMALL, f"settings.latent_tilt={tilt}"])
    task = VideoVAETask(recipe, torch.device("cpu"))
    task.measure_statistics()
    with torch.no_grad():
        return task.vae.encode(task.source.video(0, 4)).std(dim=(0, 2, 3, 4))


def test_tilted_latents_are_largest_where_the_picture_depends_on_them_most():
    change = deviations(0.35) / deviations(0.0)
    assert int(change.argmax()) == 0  # the leading principal component: how light a cell is
    assert float(change.max() / change.min()) > 2
