"""Small media files for tests: a moving square with a sound, a picture, a mask."""

from fractions import Fraction
from pathlib import Path

import torch

from soundstage.media.audio import write_wav
from soundstage.media.image import write_image
from soundstage.media.mux import write_clip


def frames(num_frames: int, height: int, width: int) -> torch.Tensor:
    """A bright square moves to the right over a gradient."""
    x = torch.linspace(0, 160, width).expand(num_frames, height, width)
    y = torch.linspace(0, 90, height)[None, :, None].expand(num_frames, height, width)
    picture = torch.stack([x, y, 255 - x], dim=-1)
    for i in range(num_frames):
        left = i * (width - 8) // max(num_frames - 1, 1)
        picture[i, 4:12, left : left + 8] = torch.tensor([250.0, 220.0, 30.0])
    return picture.to(torch.uint8)


def sound(seconds: float, sample_rate: int, pitch: float = 440.0) -> torch.Tensor:
    """A tone that swells four times a second, louder on the left."""
    time = torch.arange(round(seconds * sample_rate)) / sample_rate
    tone = torch.sin(2 * torch.pi * pitch * time) * (0.4 + 0.3 * torch.sin(2 * torch.pi * 4 * time))
    return torch.stack([tone, 0.5 * tone])


def write_video(
    path: Path,
    *,
    num_frames: int = 25,
    height: int = 32,
    width: int = 32,
    frame_rate: Fraction | int = 24,
    silent: bool = False,
    sample_rate: int = 48_000,
) -> Path:
    rate = Fraction(frame_rate)
    pixels = frames(num_frames, height, width)
    waveform = None if silent else sound(float(num_frames / rate), sample_rate)
    write_clip(path, pixels, waveform, frame_rate=rate, sample_rate=sample_rate, crf=0)
    return path


def write_picture(path: Path, height: int = 40, width: int = 48) -> Path:
    write_image(path, frames(1, height, width)[0])
    return path


def write_speech(path: Path, seconds: float = 1.0, sample_rate: int = 24_000) -> Path:
    write_wav(path, sound(seconds, sample_rate, 220.0), sample_rate=sample_rate)
    return path


def write_mask(path: Path, height: int = 32, width: int = 32) -> Path:
    """White in the lower right quarter."""
    mask = torch.zeros(height, width, 3, dtype=torch.uint8)
    mask[height // 2 :, width // 2 :] = 255
    write_image(path, mask)
    return path
