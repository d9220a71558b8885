"""An activation that invents overtones without letting them fold back: applied at twice the sample rate.

A non-linearity makes frequencies that the sample rate cannot hold; they come back as wrong, lower ones.
So: upsample by two, apply, remove the upper half, downsample by two.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.models.vocoder.layers import Signal, widen

TAPS = 12
_CUTOFF = 0.25  # cycles per sample
_HALF_WIDTH = 0.3  # of the transition band, in cycles per sample


def low_pass_filter() -> Float[Tensor, "1 1 taps"]:
    """Design the Kaiser-windowed sinc that halves the band; checkpoints store it rounded to bfloat16."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * _HALF_WIDTH + 7.95  # dB
    beta = 0.1102 * (attenuation - 8.7)  # Kaiser's formula above 50 dB
    window = torch.kaiser_window(TAPS, periodic=False, beta=beta, dtype=torch.float64)
    times = torch.arange(TAPS, dtype=torch.float64) - (TAPS - 1) / 2
    taps = 2 * _CUTOFF * window * torch.sinc(2 * _CUTOFF * times)
    return (taps / taps.sum()).to(torch.get_default_dtype()).view(1, 1, TAPS)


class SnakeBeta(nn.Module):
    """Add a periodic ripple, with a trained frequency and size per channel, both kept as logarithms.

    Source: Ziyin et al. 2020, arXiv 2006.08195; BigVGAN, arXiv 2206.04658.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Signal) -> Signal:
        """Apply x + sin²(a x) / b."""
        frequency, inverse_size = (widen(p).exp()[:, None] for p in (self.alpha, self.beta))
        return x + 1 / (inverse_size + 1e-9) * torch.sin(frequency * x).square()


class Upsample2(nn.Module):
    """Double the sample rate with the filter of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", low_pass_filter())

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n2"]:
        """Interpolate; the ends are held."""
        channels = x.shape[1]
        taps = widen(self.get_buffer("filter")).expand(channels, -1, -1)
        x = F.pad(x, (TAPS // 2 - 1, TAPS // 2 - 1), mode="replicate")
        x = 2 * F.conv_transpose1d(x, taps, stride=2, groups=channels)
        return x[..., 15:-15]  # what the padding made, and the filter's own length


class LowPass(nn.Module):
    """Halve the sample rate with the filter of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", low_pass_filter())

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n2"]:
        """Filter and keep every other sample; the ends are held."""
        channels = x.shape[1]
        taps = widen(self.get_buffer("filter")).expand(channels, -1, -1)
        x = F.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return F.conv1d(x, taps, stride=2, groups=channels)


class Downsample2(nn.Module):
    """Holder of the low-pass; checkpoints name it so."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n2"]:
        """Halve the sample rate."""
        y: Tensor = self.lowpass(x)
        return y


class AntiAliasedActivation(nn.Module):
    """SnakeBeta at twice the sample rate.

    Source: BigVGAN, arXiv 2206.04658, section 3; the filters follow Karras et al. 2021, arXiv 2106.12423.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = Upsample2()
        self.downsample = Downsample2()

    def forward(self, x: Signal) -> Signal:
        """Apply; the length stays the same."""
        y: Tensor = self.downsample(self.act(self.upsample(x)))
        return y
