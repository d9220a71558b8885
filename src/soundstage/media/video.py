"""Pictures in and out: pixels as the networks see them, 8-bit frames, and clips read from files."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from soundstage.core.errors import MediaError
from soundstage.media.audio import Sound, read_sound

ClipPixels = Float[Tensor, "3 f h w"]  # RGB in [-1, 1], one clip
Frames = UInt8[Tensor, "f h w 3"]  # RGB in [0, 255]
FrameTimes = Float[Tensor, " f"]  # seconds from the start of the clip


class Clip(NamedTuple):
    """A file read back: what a viewer sees and hears, on one clock."""

    frames: Frames
    times: FrameTimes  # when each frame is shown; float64
    waveform: Float[Tensor, "2 samples"] | None  # starts at second 0 of the same clock
    sample_rate: int | None
    frame_rate: Fraction


def to_frames(pixels: ClipPixels) -> Frames:
    """Round [-1, 1] pixels to 8 bits; values outside are clipped.

    Raises:
        MediaError: Some values are not finite.
    """
    scaled = (pixels.detach().float() + 1) * 127.5
    if not torch.isfinite(scaled).all():
        raise MediaError("the picture has values that are not finite (NaN or infinity)")
    return scaled.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()


def to_pixels(frames: Frames) -> ClipPixels:
    """Turn 8-bit frames into float32 pixels in [-1, 1]; the inverse of `to_frames`."""
    return (frames.float() / 127.5 - 1).permute(3, 0, 1, 2).contiguous()


def read_clip(path: Path) -> Clip:
    """Read every frame and all sound of a file, placed by their presentation times.

    The times honour edit lists, so that encoder delay is invisible: a sound that was written at 1.0 s is read
    at 1.0 s. Second 0 is the container's start.

    Raises:
        MediaError: The file does not exist, is not a video, or is damaged.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            origin = Fraction(container.start_time or 0, av.time_base)
            frames: list[Tensor] = []
            times: list[float] = []
            for frame in container.decode(stream):
                # A raw stream has no clock: its frames follow each other at the nominal rate.
                shown = len(frames) / rate if frame.pts is None else frame.pts * frame.time_base - origin
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                times.append(float(shown))
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error
    if not frames or not rate:
        raise MediaError(f"{path} has no video frames")
    sound = read_sound(path, optional=True) or Sound(None, None)
    stacked = torch.stack(frames)
    return Clip(
        stacked, torch.tensor(times, dtype=torch.float64), sound.waveform, sound.sample_rate, Fraction(rate)
    )
