"""A video file that is to be edited: its measures, and stretches of it on one clock."""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from soundstage.core.errors import MediaError
from soundstage.core.geometry import num_audio_samples
from soundstage.media.audio import read_sound
from soundstage.media.probe import VideoInfo, probe
from soundstage.media.video import Frames, Reading, read_clip
from soundstage.pipelines.modes.sounds import fit_length

SILENT_RATE = 48_000  # Hz, nominal, where there is no sound


@dataclass(frozen=True)
class Footage:
    """A video of a constant frame rate, opened but not yet read."""

    path: Path
    like: "Footage | None" = None  # whose size and rate it is brought to

    @cached_property
    def info(self) -> VideoInfo:
        """Size, rate and length of the file.

        Raises:
            MediaError: The file has no video, or one of variable frame rate.
        """
        info = probe(self.path).video
        if info is None:
            raise MediaError(f"{self.path} has no video")
        if info.is_variable and self.like is None:
            raise MediaError(
                f"{self.path} has a variable frame rate, and an edit needs frames to keep their places; "
                "convert it to a constant rate first"
            )
        return info

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.info.height, self.info.width) if self.like is None else self.like.size

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second."""
        return self.info.frame_rate if self.like is None else self.like.frame_rate

    @property
    def num_frames(self) -> int:
        """Frames, at that rate."""
        if self.like is None or self.frame_rate == self.info.frame_rate:
            return self.info.num_frames
        return max(round(self.info.duration * self.frame_rate), 1)

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.num_frames / self.frame_rate)

    def frames(self, first: int = 0, count: int | None = None) -> Frames:
        """Read frames, at the size and rate above."""
        count = self.num_frames - first if count is None else count
        reading = Reading(start=first / self.frame_rate, max_frames=count)
        if self.like is not None:
            reading = replace(reading, size=self.size, frame_rate=self.frame_rate)
        frames = read_clip(self.path, reading, sound=False).frames
        return frames[torch.arange(count).clamp(max=len(frames) - 1)]

    @cached_property
    def sound(self) -> tuple[Tensor, int] | None:
        """The whole sound, exactly as long as the picture, and its rate; None if there is none."""
        read = read_sound(self.path, optional=True)
        if read is None or read.waveform is None or read.sample_rate is None:
            return None
        length = num_audio_samples(self.num_frames, self.frame_rate, read.sample_rate)
        return fit_length(read.waveform, length), read.sample_rate

    @property
    def sample_rate(self) -> int:
        """Rate of the sound in Hz."""
        return SILENT_RATE if self.sound is None else self.sound[1]
