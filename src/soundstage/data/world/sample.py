"""The world as a source of samples: a seed in; picture, sound, caption and ground truth out."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from soundstage.core.errors import ConfigError
from soundstage.core.types import VideoPixels, Waveform
from soundstage.data.world.caption import caption_of
from soundstage.data.world.kind import MIN_ASPECT, Split
from soundstage.data.world.kinds import chosen_kinds
from soundstage.data.world.render import render_video
from soundstage.data.world.scene import Scene
from soundstage.data.world.synth import synthesise

MIN_SIZE = 16  # pixels; the smallest object still has a radius of 2


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Size and rates of the clips that a world makes."""

    num_frames: int = 49
    height: int = 64  # pixels
    width: int = 64  # pixels
    frame_rate: Fraction = Fraction(24)  # frames/s
    sample_rate: int = 24_000  # Hz
    tail: float = 0.0  # seconds of sound past the end of the clip
    split: Split = "train"
    kinds: tuple[str, ...] = ()  # names of the kinds of scenes; none = all
    plain: bool = False  # whether no scene is silent, off-screen, overlaid or filmed by a moving camera

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width", "frame_rate", "sample_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} should be positive")
        chosen_kinds(self.kinds)
        if self.tail < 0:
            raise ConfigError(f"tail={self.tail} should be 0 or more seconds")
        if min(self.height, self.width) < MIN_SIZE:
            least = f"use {MIN_SIZE}x{MIN_SIZE} or more"
            raise ConfigError(f"{self.width}x{self.height} pixels is too small for an object; {least}")
        if self.width < MIN_ASPECT * self.height:
            least = f"use {math.ceil(MIN_ASPECT * self.height)} or more"
            raise ConfigError(f"width={self.width} is too narrow for height={self.height}; {least}")

    @property
    def duration(self) -> float:
        """Seconds of the clip."""
        return self.num_frames / float(self.frame_rate)


@dataclass(frozen=True, kw_only=True)
class WorldBatch:
    """Clips with sound, captions and the scenes behind them."""

    pixels: VideoPixels
    waveform: Waveform
    captions: tuple[str, ...]
    scenes: tuple[Scene, ...]


class World:
    """Make clips from seeds; the same seed gives the same clip wherever and in whatever batch it is made."""

    def __init__(self, config: WorldConfig) -> None:
        self.config = config

    def scene(self, seed: int) -> Scene:
        """Scene of one seed."""
        config = self.config
        return Scene.from_seed(
            seed,
            config.split,
            duration=config.duration,
            aspect=config.width / config.height,
            kinds=config.kinds,
            plain=config.plain,
        )

    def caption(self, seed: int) -> str:
        """One wording for the scene of `seed`."""
        return caption_of(self.scene(seed), random.Random(f"caption:{self.config.split}:{seed}"))

    def pixels(self, scenes: Sequence[Scene], device: torch.device | str = "cpu") -> VideoPixels:
        """Only the pictures, for training that hears nothing."""
        config = self.config
        return render_video(
            scenes,
            num_frames=config.num_frames,
            height=config.height,
            width=config.width,
            frame_rate=config.frame_rate,
            device=device,
        )

    def waveform(self, scenes: Sequence[Scene], device: torch.device | str = "cpu") -> Waveform:
        """Only the sound, `tail` included, for training that sees nothing."""
        duration = self.config.duration + self.config.tail
        return synthesise(scenes, duration=duration, sample_rate=self.config.sample_rate, device=device)

    def batch(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> WorldBatch:
        """Make the clips of `seeds`."""
        scenes = tuple(self.scene(seed) for seed in seeds)
        return WorldBatch(
            pixels=self.pixels(scenes, device),
            waveform=self.waveform(scenes, device),
            captions=tuple(self.caption(seed) for seed in seeds),
            scenes=scenes,
        )
