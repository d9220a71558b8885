"""Which passes run at which look, and what terms add while their passes rest."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from soundstage.core.types import AV
from soundstage.diffusion.cadence import Cadence
from soundstage.diffusion.denoise import Recipe, denoise
from soundstage.diffusion.guidance import (
    Between,
    ClassifierFreeGuidance,
    CrossModalGuidance,
    GuidancePlan,
    SpatioTemporalGuidance,
    StreamGuidance,
    When,
)
from soundstage.diffusion.rehearsal import rehearse
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.diffusion.schedules import explicit

LEVELS = (1.0, 0.9, 0.7, 0.4, 0.2, 0.0)


def stg(every: int = 1, interval: tuple[float, float] = (0.0, 1.0), between: Between = "reuse"):
    when = When(interval=interval, every=every, between=between)
    return StreamGuidance(terms=(SpatioTemporalGuidance(scale=1.0, blocks=(0,), when=when),))


def looks(guidance: GuidancePlan, sampler: str = "euler", frozen: AV[bool] = AV(False, False)):  # noqa: B008
    recipe = Recipe(sigmas=explicit(LEVELS), sampler=SAMPLERS[sampler], guidance=guidance)
    return rehearse(recipe, frozen)


def runs(guidance: GuidancePlan, name: str, sampler: str = "euler") -> list[int]:
    """Say for each look whether a pass ran."""
    return [int(name in look.passes) for look in looks(guidance, sampler)]


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (stg(), [1, 1, 1, 1, 1]),
        (stg(every=2), [1, 0, 1, 0, 1]),
        (stg(every=3), [1, 0, 0, 1, 0]),
        (stg(interval=(0.3, 0.9)), [0, 1, 1, 1, 0]),
        (stg(every=2, interval=(0.0, 0.9)), [0, 1, 0, 1, 0]),
        (stg(every=9), [1, 0, 0, 0, 0]),
    ],
)
def test_pass_runs_at_the_first_step_in_the_interval_and_every_so_many_from_there(guidance, expected) -> None:
    assert runs(GuidancePlan(streams=AV(guidance)), "perturbed") == expected
    assert runs(GuidancePlan(streams=AV(audio=guidance)), "perturbed") == expected


def test_sampler_with_two_looks_a_step_runs_a_pass_at_both_or_neither() -> None:
    guidance = GuidancePlan(streams=AV(stg(every=2)))
    # two looks for each of five steps, and the last one at the very end, which belongs to the last step
    assert runs(guidance, "perturbed", "res_2s") == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1]


def test_interval_is_asked_with_the_level_of_the_look_not_of_the_step() -> None:
    found = looks(GuidancePlan(streams=AV(stg(interval=(0.5, 0.95)))), "res_2s")
    for look in found:
        assert ("perturbed" in look.passes) == (0.5 <= look.sigma <= 0.95)
    assert {"perturbed" in look.passes for look in found if 0.9 < look.sigma < 1} == {True}


def test_levels_that_float32_rounds_are_still_inside() -> None:
    assert runs(GuidancePlan(streams=AV(stg(interval=(0.7, 0.9)))), "perturbed") == [0, 1, 1, 0, 0]


def test_each_stream_keeps_its_own_time_and_a_pass_serves_both() -> None:
    guidance = GuidancePlan(streams=AV(stg(every=2), stg(every=3)))
    assert runs(guidance, "perturbed") == [1, 0, 1, 1, 1]


def test_terms_keep_their_own_time() -> None:
    terms = (
        ClassifierFreeGuidance(scale=3.0),
        SpatioTemporalGuidance(scale=1.0, blocks=(0,), when=When(every=2)),
        CrossModalGuidance(scale=3.0, when=When(interval=(0.0, 0.5))),
    )
    guidance = GuidancePlan(streams=AV(StreamGuidance(terms=terms)))
    assert runs(guidance, "uncond") == [1, 1, 1, 1, 1]
    assert runs(guidance, "perturbed") == [1, 0, 1, 0, 1]
    assert runs(guidance, "isolated") == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_terms_at_their_neutral_scale_never_run_a_pass(sampler: str) -> None:
    off = StreamGuidance(
        terms=(
            ClassifierFreeGuidance(scale=1.0, when=When(every=2)),
            SpatioTemporalGuidance(scale=0.0, when=When(interval=(0.2, 0.8))),
            CrossModalGuidance(scale=1.0),
        )
    )
    assert {look.passes for look in looks(GuidancePlan(streams=AV(off, off)), sampler)} == {("cond",)}


def test_frozen_stream_asks_for_nothing() -> None:
    guidance = GuidancePlan(streams=AV(StreamGuidance(), stg()))
    assert {look.passes for look in looks(guidance, frozen=AV(False, True))} == {("cond",)}


def predictions(seed: int) -> dict[str, AV[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {name: AV(torch.randn(1, 4, 3, generator=generator)) for name in ("cond", "perturbed")}


@pytest.mark.parametrize("between", ["reuse", "skip"])
def test_resting_term_adds_its_last_difference_or_nothing(between: Between) -> None:
    cadence = Cadence(GuidancePlan(streams=AV(stg(every=2, between=between))))
    fresh, later = predictions(0), predictions(1)
    assert cadence.passes(1.0, 0) == ("cond", "perturbed")
    first = cadence.combine(fresh, 1.0, 0).video
    delta = fresh["cond"].video - fresh["perturbed"].video
    torch.testing.assert_close(first, fresh["cond"].video + delta)
    assert cadence.passes(0.9, 1) == ("cond",)
    second = cadence.combine({"cond": later["cond"]}, 0.9, 1).video
    expected = later["cond"].video + delta if between == "reuse" else later["cond"].video
    assert torch.equal(second, expected)


def test_term_out_of_its_interval_adds_nothing_even_if_it_has_a_last_difference() -> None:
    cadence = Cadence(GuidancePlan(streams=AV(stg(every=4, interval=(0.5, 1.0)))))
    cadence.combine(predictions(0), 1.0, 0)
    cond = predictions(1)["cond"]
    assert torch.equal(cadence.combine({"cond": cond}, 0.4, 1).video, cond.video)


@dataclass
class Recorder:
    passes: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, noisy, sigma, passes):
        self.passes.append(tuple(passes))
        return [noisy.map(lambda x: 0.5 * x) for _ in passes]


@dataclass(frozen=True)
class Stream:
    clean: Tensor
    frozen: bool = False

    @property
    def latents(self) -> Tensor:
        return torch.zeros_like(self.clean)

    @property
    def denoise_mask(self) -> Tensor:
        return torch.ones_like(self.clean[..., :1])

    @property
    def generated(self) -> Tensor:
        return self.denoise_mask > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rehearsal_lists_what_a_real_run_asks_for(sampler: str) -> None:
    streams = AV(Stream(torch.randn(1, 6, 4)), Stream(torch.randn(1, 3, 4)))
    guidance = GuidancePlan(streams=AV(stg(every=2, interval=(0.0, 0.9)), stg(every=3)))
    recipe = Recipe(sigmas=explicit(LEVELS), sampler=SAMPLERS[sampler], guidance=guidance)
    recorder = Recorder()
    noisy = streams.map(lambda stream: stream.clean)
    denoise(recorder, streams, noisy, recipe, draw=lambda like, _: like.map(torch.randn_like))
    assert recorder.passes == [look.passes for look in looks(guidance, sampler)]
