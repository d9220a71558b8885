"""Guidance: further predictions of the network, and how they steer the conditional one.

Up to four passes of one step see the same latents and differ in one thing each:

| pass | what is taken away | pulls towards |
|---|---|---|
| `cond` | nothing | |
| `uncond` | the prompt (the negative prompt stands in) | the text |
| `perturbed` | self-attention in a few blocks | coherent structure |
| `isolated` | audio-video cross-attention in all blocks | the other modality: synchrony |

    guided = cond + (w_text - 1)(cond - uncond) + w_stg (cond - perturbed) + (w_mod - 1)(cond - isolated)

on denoised latents, each stream with its own scales. A term at its neutral scale needs no pass; a pass that
no stream needs is never run.

Sources: text, Ho and Salimans 2022 (arXiv 2207.12598); self-attention, Hyung et al. 2024 (arXiv 2411.18664);
modality, LTX-2 (arXiv 2601.03233); rescaling, Lin et al. 2023 (arXiv 2305.08891), section 3.4.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import AV, Tokens
from soundstage.diffusion.flow import GeneratedTokens, Stream

Pass = Literal["cond", "uncond", "perturbed", "isolated"]
PASSES: tuple[Pass, ...] = get_args(Pass)
RescaleOver = Literal["generated", "all"]


@runtime_checkable
class Term(Protocol):
    """One difference that is added to the conditional prediction."""

    @property
    def needs(self) -> Pass | None:
        """The pass it compares with; None at the neutral scale."""

    def delta(self, cond: Tokens, other: Tokens) -> Tokens:
        """Return what to add to `cond`."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance:
    """Extrapolate from the negative prompt's prediction through the prompt's.

    Raises:
        RequestError: `scale` is below 1, which would steer away from the prompt.
    """

    scale: float  # 1 = off

    def __post_init__(self) -> None:
        _check_scale("guidance_scale", self.scale, least=1.0)

    @property
    def needs(self) -> Pass | None:
        """The pass it compares with."""
        return None if self.scale == 1 else "uncond"

    def delta(self, cond: Tokens, other: Tokens) -> Tokens:
        """Return what to add to `cond`."""
        return (self.scale - 1) * (cond - other)


@dataclass(frozen=True, kw_only=True)
class ProjectedScaleGuidance(ClassifierFreeGuidance):
    """Scale the negative prediction to best match the positive one before extrapolating ("CFG*").

    Source: CFG-Zero*, Fan et al. 2025 (arXiv 2503.18886), section 4.
    """

    def delta(self, cond: Tokens, other: Tokens) -> Tokens:
        """Return what to add to `cond`."""
        projection = _dot(cond, other) / (_dot(other, other) + 1e-8)
        return (self.scale - 1) * (cond - projection * other)


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjectedGuidance(ClassifierFreeGuidance):
    """Weaken the part of the difference that is parallel to the prediction: it saturates colours.

    Source: Sadat et al. 2024 (arXiv 2410.02416), section 4.
    """

    eta: float = 1.0  # factor on the parallel part
    norm_threshold: float = 0.0  # longest difference per sample; 0 = no limit

    def delta(self, cond: Tokens, other: Tokens) -> Tokens:
        """Return what to add to `cond`."""
        difference = cond - other
        if self.norm_threshold > 0:
            length = _dot(difference, difference).sqrt()
            difference = difference * (self.norm_threshold / length).clamp(max=1)
        direction = cond / _dot(cond, cond).sqrt().clamp(min=1e-12)
        parallel = _dot(difference, direction) * direction
        return (self.scale - 1) * (self.eta * parallel + (difference - parallel))


@dataclass(frozen=True, kw_only=True)
class SpatioTemporalGuidance:
    """Steer away from what the network says with self-attention switched off in `blocks`."""

    scale: float  # 0 = off
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_scale("stg_scale", self.scale, least=0.0)
        if self.scale and not self.blocks:
            raise RequestError(f"stg_scale={self.scale} needs stg_blocks, such as 28")

    @property
    def needs(self) -> Pass | None:
        """The pass it compares with."""
        return None if self.scale == 0 else "perturbed"

    def delta(self, cond: Tokens, other: Tokens) -> Tokens:
        """Return what to add to `cond`."""
        return self.scale * (cond - other)


@dataclass(frozen=True, kw_only=True)
class CrossModalGuidance:
    """Steer away from what each stream would do without the other one."""

    scale: float  # 1 = off

    def __post_init__(self) -> None:
        _check_scale("modality_scale", self.scale, least=0.0)

    @property
    def needs(self) -> Pass | None:
        """The pass it compares with."""
        return None if self.scale == 1 else "isolated"

    def delta(self, cond: Tokens, other: Tokens) -> Tokens:
        """Return what to add to `cond`."""
        return (self.scale - 1) * (cond - other)


GUIDANCE: dict[str, type[ClassifierFreeGuidance]] = {
    "cfg": ClassifierFreeGuidance,
    "cfg_star": ProjectedScaleGuidance,
    "apg": AdaptiveProjectedGuidance,
}


@dataclass(frozen=True, kw_only=True)
class StreamGuidance:
    """All terms of one stream, how to rescale their sum, and when they apply.

    `rescale` moves the deviation of the result towards that of the conditional prediction, which large
    scales inflate. It is measured per sample over the generated tokens; "all" measures it over the whole
    tensor, batch and kept tokens included, as the official code does.
    """

    terms: tuple[Term, ...] = ()
    rescale: float = 0.0  # 0 = off, 1 = same deviation as the conditional prediction
    rescale_over: RescaleOver = "generated"
    interval: tuple[float, float] = (0.0, 1.0)  # noise levels at which the terms apply
    skip_step: int = 0  # reuse the last result for this many steps after each evaluated one

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise RequestError(f"guidance_rescale={self.rescale} is outside [0, 1]")

    @property
    def blocks(self) -> frozenset[int]:
        """Blocks whose self-attention of this stream the perturbed pass switches off."""
        stg = [term for term in self.terms if isinstance(term, SpatioTemporalGuidance) and term.needs]
        return frozenset(block for term in stg for block in term.blocks)

    def alone(self) -> "StreamGuidance":
        """Return the guidance without synchrony, for a stream that has no other beside it."""
        return replace(self, terms=tuple(t for t in self.terms if not isinstance(t, CrossModalGuidance)))

    def at(self, sigma: float) -> "StreamGuidance":
        """Return the guidance in force at a noise level."""
        low, high = self.interval
        return self if low <= sigma <= high else replace(self, terms=())

    def skips(self, step: int) -> bool:
        """Tell whether a step reuses the last result."""
        return step % (self.skip_step + 1) != 0

    def needs(self) -> set[Pass]:
        """Return the passes beside `cond` that the terms compare with."""
        return {term.needs for term in self.terms if term.needs is not None}

    def combine(self, passes: Mapping[Pass, Tokens], generated: GeneratedTokens | None = None) -> Tokens:
        """Add the terms to the conditional prediction and rescale, in float32."""
        cond = passes["cond"].float()
        guided = cond
        for term in self.terms:
            if term.needs is not None:
                guided = guided + term.delta(cond, passes[term.needs].float())
        if self.rescale == 0 or guided is cond:
            return guided
        if self.rescale_over == "all":
            ratio = cond.std() / guided.std()
        else:
            ratio = _std(cond, generated) / _std(guided, generated)
        return guided * (self.rescale * ratio + (1 - self.rescale))


@dataclass(frozen=True, kw_only=True)
class BinnedGuidance:
    """Guidance that changes with the noise level: each bin reaches up to its bound."""

    bins: tuple[tuple[float, StreamGuidance], ...]  # (upper bound, guidance), any order

    @property
    def blocks(self) -> frozenset[int]:
        """Blocks whose self-attention of this stream the perturbed pass switches off."""
        return frozenset().union(*(guidance.blocks for _, guidance in self.bins))

    def needs(self) -> set[Pass]:
        """Return the passes beside `cond` that the terms of any bin compare with."""
        return set().union(*(guidance.needs() for _, guidance in self.bins))

    def alone(self) -> "BinnedGuidance":
        """Return the guidance without synchrony, for a stream that has no other beside it."""
        return BinnedGuidance(bins=tuple((bound, guidance.alone()) for bound, guidance in self.bins))

    def at(self, sigma: float) -> StreamGuidance:
        """Return the bin with the smallest bound not below `sigma`; above all of them, the highest."""
        reaching = [entry for entry in self.bins if entry[0] >= sigma]
        if reaching:
            return min(reaching, key=lambda entry: entry[0])[1]
        return max(self.bins, key=lambda entry: entry[0])[1]


Guidance = StreamGuidance | BinnedGuidance


@dataclass(frozen=True, kw_only=True)
class GuidancePlan:
    """The guidance of both streams: which passes a step needs, and how to combine them."""

    streams: AV[Guidance] = field(default_factory=AV)  # a sampled stream without an entry is unguided

    def reduced(self, streams: AV[Stream]) -> "GuidancePlan":
        """Drop what cannot apply to `streams`: guidance of absent or frozen ones, synchrony of a lone one."""
        alone = streams.video is None or streams.audio is None
        return GuidancePlan(
            streams=AV(
                _reduce(self.streams.video, streams.video, alone),
                _reduce(self.streams.audio, streams.audio, alone),
            )
        )

    @property
    def blocks(self) -> AV[frozenset[int]]:
        """Blocks that the perturbed pass changes, per stream; they stay the same over the stage."""
        return self.streams.map(lambda guidance: guidance.blocks)

    def passes(self, sigma: float | None = None) -> tuple[Pass, ...]:
        """Return the passes that at least one stream needs, `cond` first.

        Args:
            sigma: Noise level; None asks for those needed at any level.
        """
        needed: set[Pass] = {"cond"}
        for guidance in (self.streams.video, self.streams.audio):
            if guidance is not None:
                needed |= (guidance if sigma is None else guidance.at(sigma)).needs()
        return tuple(name for name in PASSES if name in needed)

    def skipping(self, sigma: float, step: int) -> AV[bool]:
        """Tell per stream whether a step reuses the last result; if all do, the network need not run."""
        return self.streams.map(lambda guidance: guidance.at(sigma).skips(step))

    def combine(
        self, passes: Mapping[Pass, AV[Tensor]], sigma: float, generated: AV[Tensor] | None = None
    ) -> AV[Tensor]:
        """Guide each stream that has an entry; the others come back absent."""
        generated = generated or AV()
        return AV(
            _guide(self.streams.video, {k: v.video for k, v in passes.items()}, sigma, generated.video),
            _guide(self.streams.audio, {k: v.audio for k, v in passes.items()}, sigma, generated.audio),
        )


def _guide(
    guidance: Guidance | None, passes: Mapping[Pass, Tensor | None], sigma: float, generated: Tensor | None
) -> Tensor | None:
    if guidance is None:
        return None
    present = {name: tokens for name, tokens in passes.items() if tokens is not None}
    return guidance.at(sigma).combine(present, generated)


def _reduce(guidance: Guidance | None, stream: Stream | None, alone: bool) -> Guidance | None:
    if stream is None or stream.frozen:
        return None
    if guidance is None:
        return StreamGuidance()
    return guidance.alone() if alone else guidance


def _std(tokens: Tensor, generated: Tensor | None) -> Tensor:
    """Measure the unbiased deviation of each sample over its generated tokens, all channels together."""
    weights = torch.ones_like(tokens) if generated is None else generated.to(tokens.dtype).expand_as(tokens)
    count = weights.sum(dim=(1, 2), keepdim=True)
    mean = (weights * tokens).sum(dim=(1, 2), keepdim=True) / count
    squares = (weights * (tokens - mean) ** 2).sum(dim=(1, 2), keepdim=True)
    return (squares / (count - 1)).sqrt().clamp(min=1e-12)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, shape (b, 1, 1)."""
    return (a * b).sum(dim=(-2, -1), keepdim=True)


def _check_scale(name: str, value: float, least: float) -> None:
    if not math.isfinite(value):
        raise RequestError(f"{name}={value} is not a finite number")
    if value < least:
        raise RequestError(f"{name}={value} is below {least:g}; use {least:g} to switch it off")
