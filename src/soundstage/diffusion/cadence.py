"""Guidance on its way through a run: which passes an evaluation needs, and what resting terms add meanwhile.

    step            0     1     2     3     4        stg_scale with every=2, interval up to 0.9
    noise level    1.0   0.9   0.7   0.4   0.2
    pass run        .     x     .     x     .        the first step in the interval counts as the first
    term added      .     x     x     x     x        between="reuse": the last difference again

A sampler that looks at the network twice in a step runs the pass at both looks or at neither: cadence counts
steps, while intervals are asked with the level of the look itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from soundstage.core.types import AV
from soundstage.diffusion.flow import GeneratedTokens
from soundstage.diffusion.guidance import PASSES, Guidance, GuidancePlan, Pass, Term


@dataclass
class Cadence:
    """A guidance plan and its memory of one run."""

    plan: GuidancePlan
    _ran: dict[tuple[str, Term], int] = field(default_factory=dict)  # the step at which a pass last ran
    _deltas: dict[tuple[str, Term], Tensor] = field(default_factory=dict)  # what the term added then

    def passes(self, sigma: float, step: int) -> tuple[Pass, ...]:
        """Return the passes that at least one stream needs, `cond` first."""
        needed: set[Pass] = {"cond"}
        for name, guidance in self._streams():
            terms = guidance.at(sigma).terms
            needed |= {t.needs for t in terms if t.needs is not None and self._is_due(name, t, step)}
        return tuple(name for name in PASSES if name in needed)

    def combine(
        self,
        passes: Mapping[Pass, AV[Tensor]],
        sigma: float,
        step: int,
        generated: AV[Tensor] | None = None,
    ) -> AV[Tensor]:
        """Guide each stream that has an entry; the others come back absent."""
        generated = generated or AV()
        video = {name: pair.video for name, pair in passes.items() if pair.video is not None}
        audio = {name: pair.audio for name, pair in passes.items() if pair.audio is not None}
        streams = self.plan.streams
        return AV(
            None
            if streams.video is None
            else self._guide("video", streams.video, video, sigma, step, generated.video),
            None
            if streams.audio is None
            else self._guide("audio", streams.audio, audio, sigma, step, generated.audio),
        )

    def _streams(self) -> list[tuple[str, Guidance]]:
        pairs = (("video", self.plan.streams.video), ("audio", self.plan.streams.audio))
        return [(name, guidance) for name, guidance in pairs if guidance is not None]

    def _is_due(self, name: str, term: Term, step: int) -> bool:
        last = self._ran.get((name, term))
        return last is None or last == step or step - last >= term.when.every

    def _guide(
        self,
        name: str,
        guidance: Guidance,
        passes: Mapping[Pass, Tensor],
        sigma: float,
        step: int,
        generated: GeneratedTokens | None,
    ) -> Tensor:
        cond = passes["cond"].float()
        active = guidance.at(sigma)
        deltas = [self._delta(name, term, cond, passes, step) for term in active.terms]
        return active.add(cond, [delta for delta in deltas if delta is not None], generated)

    def _delta(
        self, name: str, term: Term, cond: Tensor, passes: Mapping[Pass, Tensor], step: int
    ) -> Tensor | None:
        """Return what a term adds now: a fresh difference, the last one, or nothing."""
        if term.needs is None:
            return None
        if not self._is_due(name, term, step):
            return self._deltas.get((name, term))
        delta = term.delta(cond, passes[term.needs].float())
        if term.when.every > 1:
            self._ran[name, term] = step
            if term.when.between == "reuse":
                self._deltas[name, term] = delta
        return delta
