"""Critics of sound: networks that learn to tell recorded sound from generated sound.

Each looks at the sound in its own way: folded at a prime period, which shows pitch; as a complex spectrum at
one resolution, which shows texture; or as patches of a log-mel. They are small, as the worlds they judge are.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from soundstage.core.types import LogMel, Waveform
from soundstage.dsp.stft import hann_window

SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)
WINDOWS = (256, 512, 1024)

Loss = Float[Tensor, ""]


@dataclass(frozen=True)
class Judgement:
    """What one critic thinks: scores of many places, high for recorded sound, and the features behind."""

    scores: Tensor
    features: tuple[Tensor, ...]


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> nn.Module:
    padding = (dilation[0] * (kernel_size[0] - 1) // 2, dilation[1] * (kernel_size[1] - 1) // 2)
    conv: nn.Module = weight_norm(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation)
    )
    return conv


class ConvCritic(nn.Module):
    """Convolutions with leaky activations, then one score per remaining place."""

    def __init__(self, convs: Sequence[nn.Module], final: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.final = final

    def judge(self, x: Float[Tensor, "b c h w"]) -> Judgement:
        """Score an image of the sound."""
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        return Judgement(self.final(x), tuple(features))


class PeriodCritic(ConvCritic):
    """See samples that lie one period apart as neighbours.

    Source: HiFi-GAN, arXiv 2010.05646, section 2.3.
    """

    def __init__(self, period: int, *, channels: int = 2, width: int = 16) -> None:
        widths = (channels, width, 2 * width, 4 * width, 4 * width)
        convs = [_conv(a, b, (5, 1), stride=(3, 1)) for a, b in itertools.pairwise(widths)]
        super().__init__(convs, _conv(widths[-1], 1, (3, 1)))
        self.period = period

    def forward(self, waveform: Waveform) -> Judgement:
        """Judge; the end is mirrored up to a whole period."""
        waveform = F.pad(waveform, (0, -waveform.shape[-1] % self.period), mode="reflect")
        return self.judge(waveform.unflatten(-1, (-1, self.period)))  # type: ignore[no-untyped-call]


class STFTCritic(ConvCritic):
    """See the real and imaginary parts of one short-time spectrum.

    Source: EnCodec, arXiv 2210.13438.
    """

    def __init__(self, window: int, *, channels: int = 2, width: int = 16) -> None:
        convs = [_conv(2 * channels, width, (3, 9))]
        convs += [_conv(width, width, (3, 9), stride=(1, 2), dilation=(d, 1)) for d in (1, 2, 4)]
        convs += [_conv(width, width, (3, 3))]
        super().__init__(convs, _conv(width, 1, (3, 3)))
        self.window = window

    def forward(self, waveform: Waveform) -> Judgement:
        """Judge."""
        window = hann_window(self.window).to(waveform)
        spectrum = torch.stft(
            waveform.flatten(0, 1),
            self.window,
            self.window // 4,
            window=window / window.square().sum().sqrt(),  # white noise gives the same size at any window
            return_complex=True,
        )
        parts = torch.view_as_real(spectrum)  # (b ch, bins, t, 2)
        channels = parts.unflatten(0, waveform.shape[:2]).movedim(-1, 2).flatten(1, 2)  # type: ignore[no-untyped-call]
        return self.judge(channels.mT)  # (b, ch 2, t, bins)


class AudioCritics(nn.Module):
    """All critics of a waveform."""

    def __init__(
        self,
        *,
        channels: int = 2,
        width: int = 16,
        periods: Sequence[int] = PERIODS,
        windows: Sequence[int] = WINDOWS,
    ) -> None:
        super().__init__()
        by_period = [PeriodCritic(period, channels=channels, width=width) for period in periods]
        by_window = [STFTCritic(window, channels=channels, width=width) for window in windows]
        self.critics = nn.ModuleList([*by_period, *by_window])

    def forward(self, waveform: Waveform) -> list[Judgement]:
        """Ask everyone."""
        return [critic(waveform) for critic in self.critics]


class MelCritic(ConvCritic):
    """Judge patches of a log-mel; for the audio VAE.

    Source: Isola et al. 2017, arXiv 1611.07004.
    """

    def __init__(self, *, channels: int = 2, width: int = 32) -> None:
        widths = (channels, width, 2 * width, 4 * width)
        convs = [_conv(a, b, (3, 3), stride=(2, 2)) for a, b in itertools.pairwise(widths)]
        super().__init__(convs, _conv(widths[-1], 1, (3, 3)))

    def forward(self, mel: LogMel) -> list[Judgement]:
        """Judge; a list of one, as from several critics."""
        return [self.judge(mel)]


class CriticLoss(Protocol):
    """What a critic minimises."""

    def __call__(self, real: Sequence[Judgement], fake: Sequence[Judgement]) -> Loss:
        """Score recorded sound high and generated sound low."""
        ...


class GeneratorLoss(Protocol):
    """What the generator minimises."""

    def __call__(self, fake: Sequence[Judgement]) -> Loss:
        """Be scored high."""
        ...


class AdversarialLoss(NamedTuple):
    """The two sides of one game."""

    critic: CriticLoss
    generator: GeneratorLoss


def _mean(terms: Sequence[Tensor]) -> Loss:
    return torch.stack(list(terms)).mean()


def hinge_critic_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Loss:
    """Push recorded sound above 1 and generated sound below -1, then care no more.

    Source: Lim & Ye 2017, arXiv 1705.02894.
    """
    terms = [
        F.relu(1 - r.scores).mean() + F.relu(1 + f.scores).mean() for r, f in zip(real, fake, strict=True)
    ]
    return _mean(terms)


def hinge_generator_loss(fake: Sequence[Judgement]) -> Loss:
    """Raise the scores of generated sound."""
    return _mean([-f.scores.mean() for f in fake])


def least_squares_critic_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Loss:
    """Pull recorded sound to 1 and generated sound to 0.

    Source: Mao et al. 2017, arXiv 1611.04076; used by HiFi-GAN, arXiv 2010.05646, equation 1.
    """
    terms = [
        (r.scores - 1).square().mean() + f.scores.square().mean() for r, f in zip(real, fake, strict=True)
    ]
    return _mean(terms)


def least_squares_generator_loss(fake: Sequence[Judgement]) -> Loss:
    """Pull generated sound to 1."""
    return _mean([(f.scores - 1).square().mean() for f in fake])


ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(hinge_critic_loss, hinge_generator_loss),
    "least_squares": AdversarialLoss(least_squares_critic_loss, least_squares_generator_loss),
}


def feature_matching_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Loss:
    """Compare the critics' features of recorded and generated sound, relative to their size.

    Source: Larsen et al. 2016, arXiv 1512.09300; normalised as in EnCodec, arXiv 2210.13438.
    """
    terms = [
        F.l1_loss(got, wanted.detach()) / wanted.detach().abs().mean().clamp(min=1e-6)
        for r, f in zip(real, fake, strict=True)
        for wanted, got in zip(r.features, f.features, strict=True)
    ]
    return _mean(terms)
