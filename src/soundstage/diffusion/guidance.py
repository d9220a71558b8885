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
no stream needs is never run. Each term also says at which noise levels it applies and how often its pass is
run; `cadence` keeps the books of a run.

Sources: text, Ho and Salimans 2022 (arXiv 2207.12598); self-attention, Hyung et al. 2024 (arXiv 2411.18664);
modality, LTX-2 (arXiv 2601.03233); rescaling, Lin et al. 2023 (arXiv 2305.08891), section 3.4.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import AV, Tokens
from soundstage.diffusion.flow import GeneratedTokens, Stream

Pass = Literal["cond", "uncond", "perturbed", "isolated"]
PASSES: tuple[Pass, ...] = get_args(Pass)
ROUNDING = 1e-6  # levels are float32: 0.7 is a little less there
RescaleOver = Literal["generated", "all"]
Between = Literal["reuse", "skip"]


@dataclass(frozen=True, kw_only=True)
class When:
    """At which noise levels a term applies, and at which of the steps there its pass is run.

    Raises:
        RequestError: The interval is not one of noise levels, or `every` is below 1.
    """

    interval: tuple[float, float] = (0.0, 1.0)  # noise levels, both ends included
    every: int = 1  # run the pass at the first step in the interval and every so many from there
    between: Between = "reuse"  # at the other steps: add the last difference again, or nothing

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise RequestError(f"guidance interval {low:g}, {high:g} is not a span of noise levels in [0, 1]")
        if self.every < 1:
            raise RequestError(f"guidance every={self.every} is below 1, which runs the pass at every step")

    def applies(self, sigma: float) -> bool:
        """Tell whether a noise level lies in the interval."""
        low, high = self.interval
        return low - ROUNDING <= sigma <= high + ROUNDING


ALWAYS = When()


@runtime_checkable
class Term(Protocol):
    """One difference that is added to the conditional prediction."""

    @property
    def when(self) -> When:
        """At which levels and steps."""

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
    when: When = ALWAYS

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
    when: When = ALWAYS

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
    when: When = ALWAYS

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
    """All terms of one stream, and how to rescale their sum.

    `rescale` moves the deviation of the result towards that of the conditional prediction, which large
    scales inflate. It is measured per sample over the generated tokens; "all" measures it over the whole
    tensor, batch and kept tokens included, as the official code does.
    """

    terms: tuple[Term, ...] = ()
    rescale: float = 0.0  # 0 = off, 1 = same deviation as the conditional prediction
    rescale_over: RescaleOver = "generated"
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
        """Return the guidance in force at a noise level: the terms that are on and apply there."""
        return replace(self, terms=tuple(t for t in self.terms if t.needs and t.when.applies(sigma)))

    def skips(self, step: int) -> bool:
        """Tell whether a step reuses the last result."""
        return step % (self.skip_step + 1) != 0

    def needs(self) -> set[Pass]:
        """Return the passes beside `cond` that the terms compare with."""
        return {term.needs for term in self.terms if term.needs is not None}

    def combine(self, passes: Mapping[Pass, Tokens], generated: GeneratedTokens | None = None) -> Tokens:
        """Add the terms to the conditional prediction and rescale, in float32."""
        cond = passes["cond"].float()
        needed = [(term, term.needs) for term in self.terms if term.needs is not None]
        return self.add(cond, [term.delta(cond, passes[name].float()) for term, name in needed], generated)

    def add(self, cond: Tokens, deltas: Sequence[Tokens], generated: GeneratedTokens | None = None) -> Tokens:
        """Add differences to the conditional prediction and rescale."""
        guided = cond
        for delta in deltas:
            guided = guided + delta
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
    """The guidance of both streams."""

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

    def needs(self) -> set[Pass]:
        """Return the passes beside `cond` that either stream compares with at some level."""
        guided = [guidance for guidance in (self.streams.video, self.streams.audio) if guidance is not None]
        return set().union(*(guidance.needs() for guidance in guided))

    def skipping(self, sigma: float, step: int) -> AV[bool]:
        """Tell per stream whether a step reuses the last result; if all do, the network need not run."""
        return self.streams.map(lambda guidance: guidance.at(sigma).skips(step))


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
