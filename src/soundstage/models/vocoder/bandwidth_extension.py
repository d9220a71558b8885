"""The vocoder of LTX-2.3: sound at 16 kHz, then the band above it, up to 48 kHz.

mel ─ vocoder ─┬─ causal mel ─ bwe_generator ─┐ what 16 kHz cannot hold
               └─ ×3 sinc interpolation ──────┴─ + → clamp
"""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import LogMel, Waveform
from soundstage.dsp.mel import MelConfig, mel_filterbank
from soundstage.dsp.stft import hann_window
from soundstage.models.vocoder.bigvgan import AMPGenerator
from soundstage.models.vocoder.config import BandwidthExtensionConfig, VocoderConfig
from soundstage.models.vocoder.layers import widen

_LOG_FLOOR = 1e-5
_ZERO_CROSSINGS = 6
_ROLLOFF = 0.99


def fourier_basis(n_fft: int, win_size: int) -> Float[Tensor, "rows 1 n_fft"]:
    """Make the rows that a frame is multiplied with: windowed cosines, then minus the windowed sines."""
    window = F.pad(hann_window(win_size), ((n_fft - win_size) // 2, math.ceil((n_fft - win_size) / 2)))
    turns = torch.arange(n_fft // 2 + 1, dtype=torch.float64, device="cpu")[:, None] * torch.arange(
        n_fft, dtype=torch.float64, device="cpu"
    )
    angle = 2 * math.pi / n_fft * turns
    return (torch.cat((angle.cos(), -angle.sin())) * window)[:, None]


class FourierBases(nn.Module):
    """The transform as stored tensors; the inverse one lies in the files and is never used."""

    def __init__(self, config: BandwidthExtensionConfig) -> None:
        super().__init__()
        basis = fourier_basis(config.n_fft, config.win_size).to(torch.get_default_dtype())
        device = torch.get_default_device()
        self.register_buffer("forward_basis", basis.to(device))
        self.register_buffer("inverse_basis", torch.zeros_like(basis, device=device))


class CausalLogMel(nn.Module):
    """Log-mel whose frames end where their hop ends, by the bases stored in the checkpoint."""

    def __init__(self, config: BandwidthExtensionConfig) -> None:
        super().__init__()
        self.hop_length = config.hop_length
        self.stft_fn = FourierBases(config)
        mel = MelConfig(
            sample_rate=config.input_sampling_rate,
            n_fft=config.n_fft,
            win_length=config.win_size,
            hop_length=config.hop_length,
            num_mels=config.generator.num_mels,
            f_max=config.input_sampling_rate / 2,
        )
        basis = mel_filterbank(mel).mT.to(torch.get_default_dtype(), copy=True)
        self.register_buffer("mel_basis", basis.to(torch.get_default_device()))

    def forward(self, waveform: Waveform) -> LogMel:
        """Measure; a hop of samples gives one frame."""
        basis = widen(self.stft_fn.get_buffer("forward_basis"))
        batch, channels, samples = waveform.shape
        x = F.pad(waveform.reshape(-1, 1, samples), (basis.shape[-1] - self.hop_length, 0))
        real, imaginary = F.conv1d(x, basis, stride=self.hop_length).chunk(2, dim=1)
        magnitude = (real.square() + imaginary.square()).sqrt()  # (b ch, bins, t)
        mel = widen(self.get_buffer("mel_basis")) @ magnitude
        return mel.clamp(min=_LOG_FLOOR).log().mT.reshape(batch, channels, -1, mel.shape[1])


@functools.cache
def _sinc_filter(ratio: int) -> tuple[Float[Tensor, "1 1 taps"], int]:
    """Make the interpolation filter, and say how many input samples it reaches to each side."""
    reach = math.ceil(_ZERO_CROSSINGS / _ROLLOFF)
    with torch.inference_mode(False):
        taps = torch.arange(2 * reach * ratio + 1, dtype=torch.float64, device="cpu")
        times = _ROLLOFF * (taps / ratio - reach)
        window = torch.cos(times.clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS) * math.pi / _ZERO_CROSSINGS / 2)
        return (torch.sinc(times) * window.square() * _ROLLOFF / ratio).view(1, 1, -1), reach


def interpolate(waveform: Waveform, ratio: int) -> Float[Tensor, "b ch resampled"]:
    """Raise the sample rate by a whole factor with a windowed sinc; the ends are held."""
    taps, reach = _sinc_filter(ratio)
    batch, channels, samples = waveform.shape
    x = F.pad(waveform.reshape(-1, 1, samples), (reach, reach), mode="replicate")
    y = ratio * F.conv_transpose1d(x, taps.to(x), stride=ratio)
    start = 2 * reach * ratio
    return y[..., start : start + samples * ratio].reshape(batch, channels, -1)


class BandwidthExtensionVocoder(nn.Module):
    """Synthesise in two steps; always computes in at least float32.

    bfloat16 arithmetic would cost 40 to 90 % on spectral measures, so stored weights are raised where used.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        extension = config.bandwidth_extension
        if extension is None:
            raise ValueError("this vocoder needs a configuration with bandwidth extension")
        self.config = config
        self.ratio = extension.ratio
        self.vocoder = AMPGenerator(config.generator)
        self.bwe_generator = AMPGenerator(extension.generator)
        self.mel_stft = CausalLogMel(extension)

    @property
    def sample_rate(self) -> int:
        """Hz of the waveform."""
        return self.config.sample_rate

    def forward(self, mel: LogMel) -> Waveform:
        """Synthesise; 480 samples per mel frame in the released model."""
        return self.extend(self.vocoder(mel))

    def extend(self, waveform: Float[Tensor, "b ch samples"]) -> Float[Tensor, "b ch resampled"]:
        """Add the upper band to a waveform at the lower rate."""
        samples = waveform.shape[-1]
        waveform = F.pad(waveform, (0, -samples % self.mel_stft.hop_length))
        residual = self.bwe_generator(self.mel_stft(waveform))
        full: Tensor = residual + interpolate(waveform, self.ratio)
        return full.clamp(-1, 1)[..., : samples * self.ratio]
