"""Denoise both streams together: joins network, guidance, keep masks and sampler.

    sampler ── moving streams, sigma ──▶ add the frozen streams ──▶ network, one call for the passes needed
       ▲                                                                     │
       └── denoised, kept tokens clean ◀── keep mask ◀── guidance ◀──────────┘

A stream is *moving* (sampled) or *frozen* (given). The sampler sees only the moving ones; a frozen stream
enters the network as its clean latents, bit for bit, at noise level 0 in every step, and takes no noise.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from soundstage.core.progress import OnProgress, Progress
from soundstage.core.types import AV, Sigmas
from soundstage.diffusion.cadence import Cadence
from soundstage.diffusion.flow import Stream, each_stream, keep_clean, moving, starting_point
from soundstage.diffusion.guidance import GuidancePlan, Pass
from soundstage.diffusion.samplers import DrawNoise, Sampler, SamplerTask


@runtime_checkable
class Denoiser(Protocol):
    """A network with its conditions: predicts denoised latents for several passes over the same input."""

    def __call__(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Return one prediction per pass, in order."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to denoise one stage."""

    sigmas: Sigmas
    sampler: Sampler
    guidance: GuidancePlan


def start(streams: AV[Stream], noise: AV[Tensor], *, scale: float = 1.0) -> AV[Tensor]:
    """Noise the moving streams to where sampling begins.

    Args:
        noise: Unit Gaussian, of the moving streams' shape.
        scale: 1 for a fresh stage, the first sigma for one that refines.
    """
    return each_stream(_start, moving(streams), noise, scale=scale)


def denoise(
    denoiser: Denoiser,
    streams: AV[Stream],
    noisy: AV[Tensor],
    recipe: Recipe,
    *,
    draw: DrawNoise,
    on_progress: OnProgress | None = None,
) -> AV[Tensor]:
    """Run from noise to a sample; frozen streams come back as they are.

    Args:
        noisy: What `start` returned.
        draw: Source of the noise that a sampler adds on its way.
        on_progress: Told of every evaluation, as steps of stage "denoise", and once of the end; may raise
            `Cancelled`.
    """
    cadence = Cadence(recipe.guidance.reduced(streams))
    guided = _GuidedDenoiser(denoiser, streams, moving(streams), recipe.sigmas, cadence, on_progress)
    guided.report(0)
    task = SamplerTask(denoise=guided, sigmas=recipe.sigmas, keep=guided.keep, draw=draw)
    result = _with_frozen(recipe.sampler(task, noisy.map(Tensor.float)), streams)
    guided.report(guided.num_steps)
    return result


@dataclass
class _GuidedDenoiser:
    """The denoiser that a sampler sees: guided, kept tokens clean, progress told."""

    denoiser: Denoiser
    streams: AV[Stream]
    sampled: AV[Stream]
    sigmas: Sigmas
    cadence: Cadence
    on_progress: OnProgress | None
    last: AV[Tensor] = field(default_factory=AV)
    began: float = field(default_factory=time.monotonic)

    def __call__(self, noisy: AV[Tensor], sigma: float) -> AV[Tensor]:
        step = self._step(sigma)
        skipping = self.cadence.plan.skipping(sigma, step)
        if skipping.video is False or skipping.audio is False:
            guided = self.keep(self._evaluate(noisy, sigma, step))
            self.last = AV(
                self.last.video if skipping.video else guided.video,
                self.last.audio if skipping.audio else guided.audio,
            )
        self.report(min(step + 1, self.num_steps - 1))  # the last step may be evaluated again
        return self.last

    @property
    def num_steps(self) -> int:
        """Steps from the first noise level to the last."""
        return len(self.sigmas) - 1

    def keep(self, tokens: AV[Tensor]) -> AV[Tensor]:
        """Put the kept tokens of the sampled streams back."""
        return each_stream(_keep, tokens, self.sampled)

    def report(self, step: int) -> None:
        """Tell how many steps are done."""
        if self.on_progress is not None:
            seconds = time.monotonic() - self.began
            event = Progress(stage="denoise", step=step, num_steps=self.num_steps, seconds=seconds)
            self.on_progress(event)

    def _evaluate(self, noisy: AV[Tensor], sigma: float, step: int) -> AV[Tensor]:
        names = self.cadence.passes(sigma, step)
        state = _with_frozen(noisy.map(Tensor.float), self.streams)
        predictions = dict(zip(names, self.denoiser(state, sigma, names), strict=True))
        generated = self.sampled.map(lambda stream: stream.generated)
        return self.cadence.combine(predictions, sigma, step, generated)

    def _step(self, sigma: float) -> int:
        """Return the step that an evaluation belongs to, also when it lies between two levels."""
        reached = int((self.sigmas[:-1] >= sigma).sum())
        return max(reached - 1, 0)


def _start(stream: Stream, noise: Tensor, *, scale: float) -> Tensor:
    return starting_point(stream.latents, stream.clean, stream.denoise_mask, noise, scale)


def _keep(tokens: Tensor, stream: Stream) -> Tensor:
    return keep_clean(tokens, stream.clean, stream.denoise_mask)


def _with_frozen(tokens: AV[Tensor], streams: AV[Stream]) -> AV[Tensor]:
    """Add the clean latents of the frozen streams."""
    video = streams.video.clean if streams.video is not None and streams.video.frozen else tokens.video
    audio = streams.audio.clean if streams.audio is not None and streams.audio.frozen else tokens.audio
    return AV(video, audio)
