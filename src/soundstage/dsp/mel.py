"""The audio front-end: a waveform becomes the natural logarithm of its mel magnitudes."""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import ConfigError
from soundstage.core.types import LogMel, Waveform
from soundstage.dsp.stft import magnitude


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """What shapes a mel spectrogram; the values are those of every released checkpoint."""

    sample_rate: int = 16_000  # Hz
    n_fft: int = 1024  # samples
    win_length: int = 1024  # samples
    hop_length: int = 160  # samples
    num_mels: int = 64
    f_min: float = 0.0  # Hz
    f_max: float = 8_000.0  # Hz
    log_floor: float = 1e-5  # magnitudes below it are silence

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "win_length", "hop_length", "num_mels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not positive")
        if self.win_length > self.n_fft:
            raise ConfigError(f"win_length={self.win_length} exceeds n_fft={self.n_fft}")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ConfigError(
                f"f_min={self.f_min}, f_max={self.f_max} do not lie in order within "
                f"0 .. {self.sample_rate / 2}"
            )

    @property
    def frame_rate(self) -> float:
        """Mel frames per second."""
        return self.sample_rate / self.hop_length

    def num_frames(self, samples: int) -> int:
        """Mel frames of that many samples."""
        return 1 + samples // self.hop_length


# The Slaney scale is linear up to 1 kHz and logarithmic above, 27 steps per factor of 6.4.
_BREAK_HZ, _BREAK_MEL, _LOG_STEP = 1000.0, 15.0, math.log(6.4) / 27


def hz_to_mel(frequency: float) -> float:
    """Convert hertz to mels on the Slaney scale."""
    if frequency < _BREAK_HZ:
        return frequency * _BREAK_MEL / _BREAK_HZ
    return _BREAK_MEL + math.log(frequency / _BREAK_HZ) / _LOG_STEP


def mel_to_hz(mel: float) -> float:
    """Convert mels on the Slaney scale to hertz."""
    if mel < _BREAK_MEL:
        return mel * _BREAK_HZ / _BREAK_MEL
    return _BREAK_HZ * math.exp((mel - _BREAK_MEL) * _LOG_STEP)


@functools.cache
def mel_filterbank(config: MelConfig) -> Float[Tensor, "bins mels"]:
    """Make the triangles that gather frequency bins into mel bins, each of area 1 (Slaney).

    Cached on the CPU in float64; do not change it in place.
    """
    low, high = hz_to_mel(config.f_min), hz_to_mel(config.f_max)
    step = (high - low) / (config.num_mels + 1)
    corners = [mel_to_hz(low + i * step) for i in range(config.num_mels + 2)]
    with torch.inference_mode(False):
        edges = torch.tensor(corners, dtype=torch.float64, device="cpu")
        bins = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64, device="cpu")
        frequencies = bins[:, None] * config.sample_rate / config.n_fft
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        rising = (frequencies - left) / (centre - left)
        falling = (right - frequencies) / (right - centre)
        return torch.minimum(rising, falling).clamp(min=0) * 2 / (right - left)


def log_mel(waveform: Waveform, config: MelConfig) -> LogMel:
    """Compute what the audio VAE sees: natural-log mel magnitudes, frames before bins.

    The waveform must already have the sample rate of `config`. Nothing is normalised. Differentiable.

    Raises:
        RequestError: The waveform is shorter than half a window.
    """
    spectrum = magnitude(
        waveform, n_fft=config.n_fft, hop_length=config.hop_length, win_length=config.win_length
    )
    mel = spectrum.transpose(-1, -2) @ mel_filterbank(config).to(spectrum)  # (b, ch, t, mels)
    return mel.clamp(min=config.log_floor).log()
