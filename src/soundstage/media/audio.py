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

from soundstage.core.errors import MediaError
from soundstage.core.files import atomic_output

StereoWaveform = Float[Tensor, "2 samples"]  # [-1, 1], one clip


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


def read_sound(path: Path, *, optional: bool = False) -> Sound | None:
    """Read the first sound track as stereo at its own rate, placed by presentation time.

    Encoder delay and padding are left out as the container says; a track that starts late is preceded by
    silence, so that sample `i` belongs to second `i / sample_rate` of the clip.

    Args:
        optional: Return None for a file without sound instead of raising.

    Raises:
        MediaError: The file cannot be read, or has no sound.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                if optional:
                    return None
                raise MediaError(f"{path} has no sound track")
            stream = container.streams.audio[0]
            origin = Fraction(container.start_time or 0, av.time_base)
            resampler = av.AudioResampler(format="fltp", layout="stereo", rate=stream.rate)
            pieces: list[tuple[int, Tensor]] = []
            for frame in container.decode(stream):
                start = round((frame.pts * frame.time_base - origin) * stream.rate)
                for converted in resampler.resample(frame):
                    pieces.append((start, torch.from_numpy(converted.to_ndarray())))
            end = None
            if stream.duration is not None:
                end = round(((stream.start_time or 0) + stream.duration) * stream.time_base * stream.rate)
                end -= round(origin * stream.rate)
            return Sound(_place(pieces, end), stream.rate)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error


def _place(pieces: list[tuple[int, Tensor]], end: int | None) -> StereoWaveform:
    """Lay decoded pieces on one time line; what lies before 0 or after `end` is cut."""
    if end is None:
        end = max((start + piece.shape[1] for start, piece in pieces), default=0)
    waveform = torch.zeros(2, max(end, 0))
    for start, piece in pieces:
        piece = piece[:, max(-start, 0) :]
        start = max(start, 0)
        width = min(piece.shape[1], end - start)
        if width > 0:
            waveform[:, start : start + width] = piece[:, :width]
    return waveform


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
