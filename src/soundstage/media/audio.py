"""Sound in and out: waveforms read from any file by presentation time, and 16-bit WAV."""

import json
import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import MediaError, RequestError
from soundstage.core.files import atomic_output
from soundstage.dsp.channels import to_stereo
from soundstage.media.container import Seconds, clock_origin, open_media, seek_before, sound_stream

StereoWaveform = Float[Tensor, "2 samples"]  # [-1, 1], one clip

_PREROLL = Fraction(1, 4)  # seconds decoded before a span, until every decoder has what it carries over


class Sound(NamedTuple):
    """A waveform and its rate; both None where a file has no sound."""

    waveform: StereoWaveform | None
    sample_rate: int | None


def clip_waveform(waveform: StereoWaveform) -> StereoWaveform:
    """Bring a waveform to float32 on the CPU within [-1, 1].

    Raises:
        MediaError: Some values are not finite.
    """
    samples = waveform.detach().float().cpu()
    if not torch.isfinite(samples).all():
        raise MediaError("the sound has values that are not finite (NaN or infinity)")
    return samples.clamp(-1, 1).contiguous()


def read_sound(
    path: Path, *, start: Seconds = 0, duration: Seconds | None = None, optional: bool = False
) -> Sound | None:
    """Read the first sound track as stereo at its own rate, placed by presentation time.

    Second 0 is the first shown frame where the file has a picture, else the track's beginning. Encoder delay
    and padding are left out as the container says; a track that starts late is preceded by silence, so that
    sample `i` belongs to second `start + i / sample_rate`. Only the asked span is decoded. The result ends
    where the track ends; it is never padded.

    Args:
        start: Seconds.
        duration: Seconds, at most; None reads to the end.
        optional: Return None for a file without sound instead of raising.

    Raises:
        MediaError: The file cannot be read, has no sound, or none after `start`.
        RequestError: The span is impossible.
    """
    if start < 0 or (duration is not None and duration <= 0):
        raise RequestError(f"start={start}, duration={duration} is not a span; start at 0 or later")
    with open_media(path) as container:
        stream = sound_stream(container)
        if stream is None:
            if optional:
                return None
            raise MediaError(f"{path} has no sound track")
        origin = clock_origin(container)
        if start > 0:
            seek_before(container, stream, Fraction(start) + origin - _PREROLL)
        track = _Track(origin, Fraction(start), duration)
        for frame in container.decode(stream):
            if not track.add(frame):
                break
        if not track.pieces:
            raise MediaError(f"{path} has no sound after second {float(start):g}")
        return Sound(track.waveform(_stated_end(container, stream)), track.sample_rate)


class _Track:
    """Decoded pieces of sound on one time line that starts at the asked second."""

    def __init__(self, origin: Fraction, start: Fraction, duration: Seconds | None) -> None:
        self._zero = origin + start  # of the time line, on the container's clock
        self._duration = duration
        self.sample_rate = 0
        self.pieces: list[tuple[int, Tensor]] = []  # first sample on the time line, samples

    def add(self, frame: Any) -> bool:
        """Take a decoded frame; False once it lies behind the span."""
        self.sample_rate = self.sample_rate or frame.sample_rate
        if frame.sample_rate != self.sample_rate:
            rates = f"{self.sample_rate} Hz to {frame.sample_rate} Hz"
            raise MediaError(f"the sound changes its sample rate from {rates} on the way; convert it first")
        at = self._next() if frame.pts is None else self._sample(frame.pts * frame.time_base)
        if self._duration is not None and at >= self._limit():
            return False
        if at + frame.samples > 0:
            self.pieces.append((at, _stereo(frame)))
        return True

    def waveform(self, stated_end: Fraction | None) -> StereoWaveform:
        """Lay the pieces down; what lies before 0 or after the end is cut."""
        end = self._next()
        if stated_end is not None:
            end = min(end, self._sample(stated_end))
        if self._duration is not None:
            end = min(end, self._limit())
        waveform = torch.zeros(2, max(end, 0))
        for start, piece in self.pieces:
            piece = piece[:, max(-start, 0) :]
            start = max(start, 0)
            width = min(piece.shape[1], end - start)
            if width > 0:
                waveform[:, start : start + width] = piece[:, :width]
        return waveform

    def _sample(self, seconds: Fraction) -> int:
        return round((seconds - self._zero) * self.sample_rate)

    def _limit(self) -> int:
        assert self._duration is not None
        return round(Fraction(self._duration) * self.sample_rate)

    def _next(self) -> int:
        if not self.pieces:
            return round(-self._zero * self.sample_rate)
        return self.pieces[-1][0] + self.pieces[-1][1].shape[1]


def _stated_end(container: Any, stream: Any) -> Fraction | None:
    """Say when the track ends, on the container's clock; only MP4 knows it to the sample, others estimate."""
    if stream.duration is None or "mp4" not in container.format.name:
        return None
    return Fraction(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _stereo(frame: Any) -> StereoWaveform:
    """Bring a decoded frame of any sample format and layout to float32 stereo in [-1, 1]."""
    samples = frame.to_ndarray()
    channels = frame.layout.nb_channels
    if samples.shape[0] != channels:  # packed: one row of interleaved samples
        samples = samples.reshape(-1, channels).T
    if samples.dtype.kind == "u":
        floats = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        floats = (samples / 2.0 ** (8 * samples.dtype.itemsize - 1)).astype(np.float32)
    else:
        floats = samples.astype(np.float32)
    names = [channel.name for channel in frame.layout.channels]
    return to_stereo(torch.from_numpy(np.ascontiguousarray(floats))[None], names)[0]


def write_wav(
    path: Path, waveform: StereoWaveform, *, sample_rate: int, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write 16-bit PCM; the metadata go into the comment as JSON, readable by `read_metadata`.

    Raises:
        MediaError: Some values are not finite.
        ResourceError: The disk is full or refuses the write.
    """
    samples = (clip_waveform(waveform) * 32767).round().numpy().astype("<i2")
    data = np.ascontiguousarray(samples.T).tobytes()
    layout = struct.pack("<HHIIHH", 1, 2, sample_rate, sample_rate * 4, 4, 16)  # PCM, stereo, 4 bytes a frame
    chunks = _chunk(b"fmt ", layout)
    if metadata is not None:
        comment = json.dumps(metadata, sort_keys=True).encode() + b"\0"
        chunks += _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", comment))
    chunks += _chunk(b"data", data)
    with atomic_output(path) as temporary:
        temporary.write_bytes(_chunk(b"RIFF", b"WAVE" + chunks))


def _chunk(name: bytes, content: bytes) -> bytes:
    """Frame one RIFF chunk: name, length, content, and a zero where the length is odd."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
