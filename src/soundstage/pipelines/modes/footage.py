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
from soundstage.pipelines.inputs import parse_size
from soundstage.pipelines.modes.mode import Model
from soundstage.pipelines.modes.sounds import fit_length
from soundstage.pipelines.request import GenerationRequest

LARGE = 4  # times the pixels that a model usually makes, above which an edit is computed smaller
SILENT_RATE = 48_000  # Hz, nominal, where there is no sound


@dataclass(frozen=True)
class Footage:
    """A video at a constant frame rate, opened but not yet read.

    One whose frame rate varies is brought to its usual rate, unless its frames must keep their places.
    """

    path: Path
    like: "Footage | None" = None  # whose size and rate it is brought to
    in_place: bool = False  # frames are replaced in the file itself

    @cached_property
    def info(self) -> VideoInfo:
        """Size, rate and length of the file.

        Raises:
            MediaError: The file has no video, or one of variable frame rate that is to be edited in place.
        """
        info = probe(self.path).video
        if info is None:
            raise MediaError(f"{self.path} has no video")
        if info.is_variable and self.in_place:
            raise MediaError(
                f"{self.path} has a variable frame rate, and a retake replaces frames in their places; bring "
                f"it to a constant {info.frame_rate} frames per second first, such as with ffmpeg -i IN "
                f"-r {info.frame_rate} OUT"
            )
        return info

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done about the file otherwise than asked, for people."""
        notes = interlaced_note(self.info, self.path)
        if self.info.is_variable and self.like is None:
            rate = self.frame_rate
            notes += (
                f"{self.path.name} has a variable frame rate: brought to a constant {float(rate):.6g} fps",
            )
        return notes

    @property
    def _is_resampled(self) -> bool:
        return self.info.is_variable or self.frame_rate != self.info.frame_rate

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
        if not self._is_resampled:
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
            reading = replace(reading, size=self.size)
        if self.like is not None or self._is_resampled:
            reading = replace(reading, frame_rate=self.frame_rate)
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


def interlaced_note(info: VideoInfo, path: Path) -> tuple[str, ...]:
    """Say that a video has two moments in every frame, which the model takes for one."""
    if not info.is_interlaced:
        return ()
    return (
        f"{path.name} is interlaced: every frame holds two moments, seen as one picture with combed edges; "
        "deinterlace it first, such as with ffmpeg -vf bwdif",
    )


def usual_size(size: tuple[int, int], model: Model) -> tuple[int, int]:
    """Choose height and width on the grid with about as many pixels as the model usually makes, or fewer."""
    scale = min((model.defaults.height * model.defaults.width / (size[0] * size[1])) ** 0.5, 1.0)
    step = model.geometry.token_size
    height, width = (max(round(extent * scale / step), 1) * step for extent in size)
    return height, width


def working_size(request: GenerationRequest, size: tuple[int, int], model: Model) -> tuple[int, int]:
    """Choose height and width at which an edit is computed: those of the video, unless it is very large."""
    if request.condition_size is not None:
        return parse_size(request.condition_size)
    is_large = size[0] * size[1] > LARGE * model.defaults.height * model.defaults.width
    return usual_size(size, model) if is_large else size


def size_note(request: GenerationRequest, size: tuple[int, int], model: Model) -> tuple[str, ...]:
    """Say that an edit was computed smaller than the video, if nobody asked for that."""
    height, width = working_size(request, size, model)
    if request.condition_size is not None or (height, width) == size:
        return ()
    whole = f"{size[1]}x{size[0]}"
    return (
        f"{whole} is much larger than what the model usually makes: made at {width}x{height}, then scaled "
        f"up; condition_size={whole} makes it as it is",
    )
