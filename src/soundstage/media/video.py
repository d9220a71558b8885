"""Pictures in and out: pixels as the networks see them, 8-bit frames, and clips read from files."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from soundstage.core.errors import MediaError, RequestError
from soundstage.media.audio import Sound, read_sound
from soundstage.media.container import Seconds, open_media, picture_origin, picture_stream, seek_before
from soundstage.media.placement import CENTRE, Fit, Placement, Size
from soundstage.media.upright import Converter, Look

ClipPixels = Float[Tensor, "3 f h w"]  # RGB in [-1, 1], one clip
Frames = UInt8[Tensor, "f h w 3"]  # RGB in [0, 255]
ExactFrames = Float[Tensor, "f h w 3"]  # RGB in [0, 255], not rounded
FrameTimes = Float[Tensor, " f"]  # seconds from the start of the clip

_CHUNK = 8  # frames held at once while streaming


class Clip(NamedTuple):
    """A file read back: what a viewer sees and hears, on one clock."""

    frames: Frames
    times: FrameTimes  # when each frame is shown; float64
    waveform: Float[Tensor, "2 samples"] | None  # starts at second 0 of the same clock
    sample_rate: int | None
    frame_rate: Fraction
    placement: Placement | None = None  # where the picture lies in the frames


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which part of a picture to read, and how.

    Raises:
        RequestError: The span or the rate is impossible.
    """

    start: Seconds = 0  # seconds
    duration: Seconds | None = None  # seconds; None reads to the end
    max_frames: int | None = None  # at most so many
    size: Size | None = None  # height and width; None leaves them as they are
    fit: Fit = "cover"
    anchor: tuple[float, float] = CENTRE
    frame_rate: Fraction | None = None  # resampled to; None leaves every frame at its own time

    def __post_init__(self) -> None:
        """Check what can be checked without the file."""
        if self.start < 0:
            raise RequestError(f"start={float(self.start):g} is before the clip; the least is 0")
        if self.duration is not None and self.duration <= 0:
            raise RequestError(f"duration={float(self.duration):g} is not a positive number of seconds")
        if self.max_frames is not None and self.max_frames < 1:
            raise RequestError(f"max_frames={self.max_frames} is not positive; the least is 1")
        if self.frame_rate is not None and self.frame_rate <= 0:
            raise RequestError(f"frame_rate={self.frame_rate} is not positive")

    @property
    def end(self) -> Fraction | None:
        """Second at which the span ends."""
        return None if self.duration is None else Fraction(self.start) + Fraction(self.duration)


def to_frames(pixels: ClipPixels) -> Frames:
    """Round [-1, 1] pixels to 8 bits; values outside are clipped.

    Raises:
        MediaError: Some values are not finite.
    """
    scaled = (pixels.detach().float() + 1) * 127.5
    if not torch.isfinite(scaled).all():
        raise MediaError("the picture has values that are not finite (NaN or infinity)")
    return scaled.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()


def to_pixels(frames: Frames | ExactFrames) -> ClipPixels:
    """Turn frames in [0, 255] into float32 pixels in [-1, 1]; the inverse of `to_frames`."""
    return (frames.float() / 127.5 - 1).permute(3, 0, 1, 2).contiguous()


class FrameStream:
    """The frames of a file one after the other, upright, at the asked size and rate.

    Memory is bounded by a few frames of the asked size: they are scaled while they are decoded.

    Raises:
        MediaError: The file does not exist, has no picture, or is damaged; while iterating, too.
    """

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._reading = reading
        with open_media(path) as container:
            stream = picture_stream(container)
            if stream is None:
                raise MediaError(f"{path} has no video stream")
            first = next(container.decode(stream), None)
            rate = stream.average_rate or stream.guessed_rate
            if first is None or not rate:
                raise MediaError(f"{path} has no video frames")
            look = Look.of(first, stream.sample_aspect_ratio)
        self._nominal = Fraction(rate)
        self._convert = Converter(look, reading.size, reading.fit, reading.anchor)
        self.frame_rate = reading.frame_rate or self._nominal

    @property
    def placement(self) -> Placement:
        """Where the picture lies in the frames."""
        return self._convert.placement

    def __iter__(self) -> Iterator[tuple[Fraction, UInt8[Tensor, "h w 3"]]]:
        """Yield each frame with its time in seconds from `start`."""
        with open_media(self._path) as container:
            timed = _decode_from(container, Fraction(self._reading.start), self._nominal)
            picked = self._own_times(timed) if self._reading.frame_rate is None else self._steps(timed)
            last: Any = None
            for time, frame in picked:
                if frame is not last:
                    last, picture = frame, self._convert(frame)
                yield time, picture

    def _own_times(self, timed: Iterator[tuple[Fraction, Fraction, Any]]) -> Iterator[tuple[Fraction, Any]]:
        """Pick the frames whose time, give or take half a step, lies in the span."""
        start, slack = Fraction(self._reading.start), 1 / self._nominal / 2
        end, count = self._reading.end, 0
        for time, _, frame in timed:
            if time < start - slack and start > 0:
                continue
            if (end is not None and time >= end - slack) or count == self._reading.max_frames:
                return
            yield time - start, frame
            count += 1

    def _steps(self, timed: Iterator[tuple[Fraction, Fraction, Any]]) -> Iterator[tuple[Fraction, Any]]:
        """Pick for each step of a constant rate the frame that is shown then.

        A frame is taken up to half a step early (of either rate, the smaller), so that each step gets the
        nearest frame, but a frame that stays for long stays until the next one comes.
        """
        rate, start = self.frame_rate, Fraction(self._reading.start)
        early = min(1 / rate, 1 / self._nominal) / 2
        total = self._reading.max_frames
        if self._reading.duration is not None:
            asked = max(round(Fraction(self._reading.duration) * rate), 1)
            total = asked if total is None else min(total, asked)
        index, shown, end = 0, None, start
        for time, lasts, frame in timed:
            while shown is not None and start + index / rate < time - early and index != total:
                yield index / rate, shown
                index += 1
            if index == total:
                return
            shown, end = frame, time + lasts
        until = max(round((end - start) * rate), 1 if end > start else 0)
        for step in range(index, until if total is None else min(until, total)):
            yield step / rate, shown


def stream_frames(path: Path, reading: Reading | None = None, *, chunk: int = _CHUNK) -> Iterator[Frames]:
    """Read a picture in chunks of frames, so that memory does not grow with its length.

    Raises:
        MediaError: The file does not exist, has no picture, or is damaged.
    """
    held: list[Tensor] = []
    for _, picture in FrameStream(path, reading or Reading()):
        held.append(picture)
        if len(held) == chunk:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


def read_clip(path: Path, reading: Reading | None = None, *, sound: bool = True) -> Clip:
    """Read the frames and the sound of a file, placed by their presentation times.

    The times honour edit lists, so that encoder delay is invisible: a sound that was written at 1.0 s is read
    at 1.0 s. Second 0 of the file is its first shown frame; second 0 of the clip is the reading's start. A
    reading that reaches beyond the end gives what there is.

    Args:
        sound: Whether to read the sound, too.

    Raises:
        MediaError: The file does not exist, is not a video, or is damaged; or the span holds no frame.
    """
    reading = reading or Reading()
    stream = FrameStream(path, reading)
    timed = list(stream)
    if not timed:
        raise MediaError(f"{path} has no frame after second {float(reading.start):g}")
    heard = None
    if sound:
        length = None if reading == Reading() else len(timed) / stream.frame_rate
        heard = read_sound(path, start=reading.start, duration=length, optional=True)
    return Clip(
        torch.stack([picture for _, picture in timed]),
        torch.tensor([float(time) for time, _ in timed], dtype=torch.float64),
        *(heard or Sound(None, None)),
        stream.frame_rate,
        stream.placement,
    )


def _decode_from(
    container: Any, start: Fraction, nominal: Fraction
) -> Iterator[tuple[Fraction, Fraction, Any]]:
    """Decode frames as (time, duration, frame), the first at or before `start`, all on the file's clock."""
    stream, origin = picture_stream(container), picture_origin(container)
    assert stream is not None
    stream.thread_type = "AUTO"
    if start > 0:
        seek_before(container, stream, start + origin - 1 / nominal)
    for count, frame in enumerate(container.decode(stream)):
        # A raw stream has no clock: its frames follow each other at the nominal rate.
        time = count / nominal if frame.pts is None else frame.pts * frame.time_base - origin
        lasts = frame.duration * frame.time_base if frame.duration else 1 / nominal
        yield time, lasts, frame
