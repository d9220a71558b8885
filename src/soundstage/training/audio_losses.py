"""How far one sound is from another: spectra at several resolutions, of the channels and their difference."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import Waveform
from soundstage.dsp.mel import MelConfig, log_mel
from soundstage.dsp.stft import magnitude

Loss = Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class STFTResolution:
    """One trade of precision in frequency against precision in time; all in samples."""

    n_fft: int
    hop_length: int
    win_length: int


# Source: Parallel WaveGAN, arXiv 1910.11480, table 1.
STFT_RESOLUTIONS = (
    STFTResolution(n_fft=1024, hop_length=120, win_length=600),
    STFTResolution(n_fft=2048, hop_length=240, win_length=1200),
    STFTResolution(n_fft=512, hop_length=50, win_length=240),
)

MAGNITUDE_FLOOR = 1e-3  # a full-scale sine reaches a quarter of the window's length; below this is silence


def mel_scales(sample_rate: int, n_ffts: Sequence[int] = (512, 1024, 2048)) -> tuple[MelConfig, ...]:
    """Make mel front-ends of several window lengths; one bin per 16 samples of window leaves none empty."""
    return tuple(
        MelConfig(
            sample_rate=sample_rate,
            n_fft=n_fft,
            win_length=n_fft,
            hop_length=n_fft // 4,
            num_mels=n_fft // 16,
            f_max=sample_rate / 2,
        )
        for n_fft in n_ffts
    )


def with_mid_side(waveform: Waveform) -> Float[Tensor, "b ch2 samples"]:
    """Append the mean and half the difference of a stereo pair, so that a loss hears the pan; mono stays.

    Two channels that are each right up to phase can still be wrong together.

    Source: Steinmetz et al. 2020, arXiv 2010.10291.
    """
    if waveform.shape[1] != 2:
        return waveform
    left, right = waveform.unbind(1)
    return torch.stack((left, right, (left + right) / 2, (left - right) / 2), dim=1)


def multi_resolution_stft_loss(
    predicted: Waveform, target: Waveform, resolutions: Sequence[STFTResolution] = STFT_RESOLUTIONS
) -> Loss:
    """Compare magnitudes: the relative error in the large ones plus the mean error of their logarithms.

    Source: Parallel WaveGAN, arXiv 1910.11480, section 2.2.
    """
    predicted, target = with_mid_side(predicted), with_mid_side(target)
    terms = []
    for at in resolutions:
        size = {"n_fft": at.n_fft, "hop_length": at.hop_length, "win_length": at.win_length}
        got, wanted = magnitude(predicted, **size), magnitude(target, **size)
        convergence = (got - wanted).norm() / wanted.norm().clamp(min=MAGNITUDE_FLOOR)
        logs = F.l1_loss(got.clamp(min=MAGNITUDE_FLOOR).log(), wanted.clamp(min=MAGNITUDE_FLOOR).log())
        terms.append(convergence + logs)
    return torch.stack(terms).mean()


def multi_scale_mel_loss(predicted: Waveform, target: Waveform, scales: Sequence[MelConfig]) -> Loss:
    """Compare log-mels of several window lengths by their mean absolute difference.

    Source: HiFi-GAN, arXiv 2010.05646, equation 3; several scales as in DAC, arXiv 2306.06546.
    """
    predicted, target = with_mid_side(predicted), with_mid_side(target)
    terms = [F.l1_loss(log_mel(predicted, scale), log_mel(target, scale)) for scale in scales]
    return torch.stack(terms).mean()
