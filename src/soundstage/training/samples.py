"""Samples of the world for training: a function of a seed, rendered where training runs."""

import random

import torch

from soundstage.core.types import VideoPixels, Waveform
from soundstage.data.world.caption import caption_of
from soundstage.data.world.kind import Split
from soundstage.data.world.kinds import chosen_kinds
from soundstage.data.world.render import render_video
from soundstage.data.world.scene import Scene
from soundstage.data.world.synth import synthesise
from soundstage.training.recipe import DataRecipe

HELD_OUT_SEED = 1 << 40  # training seeds are hashed and practically never fall just above it


class WorldSource:
    """Draw scenes, then render, synthesise and describe them."""

    def __init__(self, recipe: DataRecipe, device: torch.device) -> None:
        chosen_kinds(recipe.kinds)
        self.recipe, self.device = recipe, device

    @property
    def duration(self) -> float:
        """Seconds of a clip."""
        return self.recipe.num_frames / self.recipe.frame_rate

    def scenes(self, seed: int, count: int, split: Split = "train") -> list[Scene]:
        """Draw scenes; half of them mirrored, so that left and right are equally common."""
        rng = random.Random(seed)
        aspect = self.recipe.width / self.recipe.height
        drawn = [
            Scene.from_seed(
                rng.getrandbits(62), split, duration=self.duration, aspect=aspect, kinds=self.recipe.kinds
            )
            for _ in range(count)
        ]
        return [scene.mirrored() if rng.random() < 0.5 else scene for scene in drawn]

    def captions(self, seed: int, scenes: list[Scene]) -> list[str]:
        """Describe each scene in one of its wordings."""
        rng = random.Random(seed ^ 0x5EED)
        return [caption_of(scene, rng) for scene in scenes]

    def render(self, scenes: list[Scene]) -> VideoPixels:
        """Paint the scenes."""
        recipe = self.recipe
        return render_video(
            scenes,
            num_frames=recipe.num_frames,
            height=recipe.height,
            width=recipe.width,
            frame_rate=recipe.frame_rate,
            device=self.device,
        )

    def sound(self, scenes: list[Scene], sample_rate: int, extra_seconds: float = 0.0) -> Waveform:
        """Play the scenes, past the clip's end if asked: what is cut off later leaves no false onset."""
        duration = self.duration + extra_seconds
        return synthesise(scenes, duration=duration, sample_rate=sample_rate, device=self.device)

    def video(self, seed: int, count: int, split: Split = "train") -> VideoPixels:
        """Render `count` clips."""
        return self.render(self.scenes(seed, count, split))

    def waveform(
        self, seed: int, count: int, sample_rate: int, extra_seconds: float = 0.0, split: Split = "train"
    ) -> Waveform:
        """Synthesise `count` sound tracks."""
        return self.sound(self.scenes(seed, count, split), sample_rate, extra_seconds)
