"""One clip as the detectors see it: what a decoder makes of the file, and what was found in it so far.

A detector is a function of an `Observation`; asking through `find` runs it once, however many others build on
it. So a new detector is one new function, and nothing here knows which detectors exist.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import MediaError
from soundstage.dsp.resample import resample
from soundstage.media.video import Clip, FrameTimes, read_clip

SAMPLE_RATE = 16_000  # Hz, of the sound that detectors hear, whatever the file's own rate

Pictures = Float[Tensor, "frames height width 3"]  # RGB in [0, 255]
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the container says about its streams, in seconds; None without sound."""

    video_start: float
    video_duration: float
    audio_start: float | None
    audio_duration: float | None


class Observation:
    """A decoded clip together with everything that detectors found in it."""

    def __init__(self, clip: Clip, timing: Timing) -> None:
        self.clip = clip
        self.timing = timing
        self._found: dict[Callable[[Any], Any], Any] = {}

    def find(self, detector: "Callable[[Observation], Found]") -> Found:
        """Give what a detector finds in this clip, from memory if it was asked before."""
        if detector not in self._found:
            self._found[detector] = detector(self)
        found: Found = self._found[detector]
        return found

    @cached_property
    def pictures(self) -> Pictures:
        """Every frame, in 8-bit steps."""
        return self.clip.frames.float()

    @property
    def times(self) -> FrameTimes:
        """When each frame is shown."""
        return self.clip.times

    @property
    def duration(self) -> float:
        """Seconds that the picture lasts."""
        return float(self.clip.times[-1]) + float(1 / self.clip.frame_rate)

    @cached_property
    def waveform(self) -> Float[Tensor, "2 samples"]:
        """Hear the clip at `SAMPLE_RATE`; a file without sound is silent for its duration."""
        if self.clip.waveform is None or self.clip.sample_rate is None:
            return torch.zeros(2, round(self.duration * SAMPLE_RATE))
        return resample(self.clip.waveform[None], self.clip.sample_rate, SAMPLE_RATE)[0]


def observe(path: Path) -> Observation:
    """Read a file for measuring.

    Raises:
        MediaError: The file is missing, damaged or has no picture.
    """
    return Observation(read_clip(path), read_timing(path))


def read_timing(path: Path) -> Timing:
    """Ask the container when its streams begin and how long they last."""
    import av

    try:
        with av.open(str(path)) as container:
            picture = container.streams.video[0]
            sound = container.streams.audio[0] if container.streams.audio else None
            return Timing(
                video_start=_seconds(picture.start_time, picture.time_base),
                video_duration=_seconds(picture.duration, picture.time_base),
                audio_start=None if sound is None else _seconds(sound.start_time, sound.time_base),
                audio_duration=None if sound is None else _seconds(sound.duration, sound.time_base),
            )
    except (av.FFmpegError, OSError, IndexError) as error:
        raise MediaError(f"cannot read {path}: {error}") from error


def _seconds(ticks: int | None, time_base: Fraction) -> float:
    return float((ticks or 0) * time_base)
