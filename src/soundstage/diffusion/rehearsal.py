"""What a recipe will ask of the network, found out by running it without one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from soundstage.core.types import AV, TokenMask, Tokens
from soundstage.diffusion.denoise import Recipe, denoise
from soundstage.diffusion.guidance import Pass

_TOKENS = torch.zeros(1, 2, 1)


class Look(NamedTuple):
    """One evaluation of the network."""

    sigma: float
    passes: tuple[Pass, ...]


@dataclass(frozen=True)
class _Empty:
    """A stream of two tokens that nobody looks at."""

    frozen: bool = False
    latents: Tokens = field(default_factory=_TOKENS.clone)
    clean: Tokens = field(default_factory=_TOKENS.clone)
    denoise_mask: TokenMask = field(default_factory=lambda: torch.ones(1, 2, 1))
    generated: Bool[Tensor, "b n 1"] = field(default_factory=lambda: torch.ones(1, 2, 1, dtype=torch.bool))


class _Recorder:
    def __init__(self) -> None:
        self.looks: list[Look] = []

    def __call__(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        self.looks.append(Look(sigma, tuple(passes)))
        return [noisy.map(Tensor.float) for _ in passes]


def rehearse(recipe: Recipe, frozen: AV[bool]) -> list[Look]:
    """List the evaluations of a run, in order, each with its noise level and passes.

    It is the run itself, on two tokens per stream and without a network: what is listed is what will happen,
    whatever sampler, intervals and cadences do.

    Args:
        frozen: Per stream whether it is given; None for one that is absent.
    """
    recorder = _Recorder()
    streams = frozen.map(lambda is_frozen: _Empty(frozen=is_frozen))
    moving = streams.map(lambda stream: stream.latents)
    noisy = AV(
        None if frozen.video is not False else moving.video,
        None if frozen.audio is not False else moving.audio,
    )
    denoise(recorder, streams, noisy, recipe, draw=_noise)
    return recorder.looks


def _noise(like: AV[Tensor], _purpose: str) -> AV[Tensor]:
    return like.map(lambda tokens: torch.linspace(-1, 1, tokens.numel()).to(tokens).view_as(tokens))
