"""How loud a sound is to people: integrated loudness after ITU-R BS.1770, and the peak level."""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from soundstage.core.types import Waveform

BLOCK_SECONDS = 0.4
OVERLAP = 4  # blocks that cover each moment
ABSOLUTE_GATE = -70.0  # LUFS; what is quieter is not listened to
RELATIVE_GATE = -10.0  # LU below the mean of the rest
_OFFSET = -0.691  # makes a full-scale 997 Hz sine in one channel read -3.01
_RINGING_SECONDS = 0.5  # after which the weighting filter is silent

Level = Float[Tensor, " b"]


def _response(b: tuple[float, ...], a: tuple[float, ...], z: Complex[Tensor, " n"]) -> Complex[Tensor, " n"]:
    """Evaluate a biquad at the points z = exp(-jω)."""
    numerator = b[0] + b[1] * z + b[2] * z**2
    denominator = a[0] + a[1] * z + a[2] * z**2
    return numerator / denominator


def k_weighting(size: int, sample_rate: int) -> Complex[Tensor, " n"]:
    """Compute the response of the ear's weighting, for the real FFT of `size` samples.

    A shelf lifts the treble as a head does, a high-pass removes what is felt rather than heard.

    Source: ITU-R BS.1770-4, annex 1, as analogue prototypes that fit any sample rate (De Man 2014).
    """
    z = torch.exp(-2j * math.pi * torch.arange(size // 2 + 1, dtype=torch.float64, device="cpu") / size)

    gain, quality, corner = 3.999843853973347, 0.7071752369554196, 1681.974450955533
    k = math.tan(math.pi * corner / sample_rate)
    high, middle = 10 ** (gain / 20), 10 ** (gain / 20 * 0.4996667741545416)
    shelf = _response(
        (high + middle * k / quality + k * k, 2 * (k * k - high), high - middle * k / quality + k * k),
        (1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k),
        z,
    )

    quality, corner = 0.5003270373238773, 38.13547087602444
    k = math.tan(math.pi * corner / sample_rate)
    scale = 1 + k / quality + k * k
    high_pass = _response(
        (1.0, -2.0, 1.0), (1.0, 2 * (k * k - 1) / scale, (1 - k / quality + k * k) / scale), z
    )
    return shelf * high_pass


def integrated_loudness(waveform: Waveform, sample_rate: int) -> Level:
    """Measure the loudness in LUFS; minus infinity where everything is silent.

    A clip shorter than one block is measured as a whole. Every channel weighs the same, as left and right do.

    Source: ITU-R BS.1770-4, annex 1.
    """
    samples = waveform.shape[-1]
    size = samples + round(_RINGING_SECONDS * sample_rate)
    spectrum = torch.fft.rfft(waveform.to(torch.promote_types(waveform.dtype, torch.float32)), size)
    response = k_weighting(size, sample_rate).to(spectrum)
    weighted = torch.fft.irfft(spectrum * response, size)[..., :samples]
    block = min(round(BLOCK_SECONDS * sample_rate), samples)
    blocks = weighted.unfold(-1, block, max(block // OVERLAP, 1))  # (b, ch, n, block)
    power = blocks.square().mean(-1).sum(1)  # (b, n)
    kept = _decibels(power) > ABSOLUTE_GATE
    kept = kept & (_decibels(power) > _decibels(_mean(power, kept))[:, None] + RELATIVE_GATE)
    return _decibels(_mean(power, kept))


def peak_level(waveform: Waveform) -> Level:
    """Measure the largest sample in dB of full scale; minus infinity for silence."""
    return 20 * waveform.abs().amax((1, 2)).log10()


def _decibels(power: Tensor) -> Tensor:
    return _OFFSET + 10 * power.log10()


def _mean(power: Float[Tensor, "b n"], kept: Tensor) -> Level:
    return (power * kept).sum(1) / kept.sum(1).clamp(min=1)
