"""What a guidance plan refuses, leaves out and measures."""

from dataclasses import dataclass, replace

import pytest
import torch

from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.diffusion.cadence import Cadence
from soundstage.diffusion.guidance import (
    AdaptiveProjectedGuidance,
    BinnedGuidance,
    ClassifierFreeGuidance,
    CrossModalGuidance,
    GuidancePlan,
    SpatioTemporalGuidance,
    StreamGuidance,
    When,
)

FULL = StreamGuidance(
    terms=(
        ClassifierFreeGuidance(scale=3.0),
        SpatioTemporalGuidance(scale=1.0, blocks=(28, 3)),
        CrossModalGuidance(scale=3.0),
    )
)


LATENTS = torch.zeros(1, 2, 3)
MASK = torch.ones(1, 2, 1)


@dataclass(frozen=True)
class FakeStream:
    frozen: bool = False
    latents: torch.Tensor = LATENTS
    clean: torch.Tensor = LATENTS
    denoise_mask: torch.Tensor = MASK
    generated: torch.Tensor = MASK.bool()  # noqa: RUF009  a constant


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFreeGuidance(scale=0.5), "guidance_scale=0.5 is below 1; use 1 to switch it off"),
        (lambda: ClassifierFreeGuidance(scale=float("nan")), "guidance_scale=nan is not a finite number"),
        (lambda: CrossModalGuidance(scale=-1.0), "modality_scale=-1.0 is below 0"),
        (lambda: SpatioTemporalGuidance(scale=float("inf")), "stg_scale=inf is not a finite number"),
        (lambda: SpatioTemporalGuidance(scale=1.0), "stg_scale=1.0 needs stg_blocks"),
        (lambda: When(interval=(0.8, 0.2)), "guidance interval 0.8, 0.2 is not a span of noise levels"),
        (lambda: When(every=0), "guidance every=0 is below 1"),
        (lambda: StreamGuidance(rescale=1.5), r"guidance_rescale=1.5 is outside \[0, 1\]"),
    ],
)
def test_bad_value_is_refused_by_name(make, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()


def test_blocks_are_those_of_each_streams_own_active_term() -> None:
    off = StreamGuidance(terms=(SpatioTemporalGuidance(scale=0.0, blocks=(5,)),))
    plan = GuidancePlan(streams=AV(FULL, off))
    assert plan.blocks == AV(frozenset({3, 28}), frozenset())


def test_guidance_outside_its_interval_needs_no_pass() -> None:
    when = When(interval=(0.2, 0.8))
    guidance = StreamGuidance(terms=tuple(replace(term, when=when) for term in FULL.terms))
    cadence = Cadence(GuidancePlan(streams=AV(guidance)))
    assert cadence.passes(0.9, 0) == cadence.passes(0.1, 2) == ("cond",)
    assert cadence.passes(0.8, 1) == cadence.passes(0.2, 1) == ("cond", "uncond", "perturbed", "isolated")


def test_binned_guidance_changes_with_the_level() -> None:
    guidance = BinnedGuidance(bins=((1.0, FULL), (0.5, StreamGuidance())))
    plan = GuidancePlan(streams=AV(guidance))
    assert len(Cadence(plan).passes(0.6, 0)) == 4
    assert Cadence(plan).passes(0.5, 0) == ("cond",)
    assert plan.blocks.video == frozenset({3, 28})


def test_frozen_stream_loses_its_guidance_and_the_other_keeps_synchrony() -> None:
    plan = GuidancePlan(streams=AV(FULL, FULL)).reduced(AV(FakeStream(), FakeStream(frozen=True)))
    assert plan.streams == AV(FULL, None)


@pytest.mark.parametrize("guidance", [FULL, BinnedGuidance(bins=((1.0, FULL),))])
def test_lone_stream_has_no_isolated_pass(guidance) -> None:
    plan = GuidancePlan(streams=AV(guidance, guidance)).reduced(AV(None, FakeStream()))
    assert plan.streams.video is None
    assert Cadence(plan).passes(0.5, 0) == ("cond", "uncond", "perturbed")


def test_sampled_stream_without_entry_is_unguided() -> None:
    plan = GuidancePlan().reduced(AV(FakeStream(), None))
    assert plan.streams == AV(StreamGuidance(), None)


def test_reducing_twice_is_reducing_once() -> None:
    streams = AV(FakeStream(), FakeStream(frozen=True))
    once = GuidancePlan(streams=AV(FULL, FULL)).reduced(streams)
    assert once.reduced(streams) == once


def test_skipping_tells_streams_apart() -> None:
    plan = GuidancePlan(streams=AV(StreamGuidance(skip_step=1), StreamGuidance()))
    assert plan.skipping(0.5, 1) == AV(True, False)
    assert plan.skipping(0.5, 2) == AV(False, False)


def test_rescaling_measures_the_generated_tokens_only() -> None:
    """Kept tokens are alike in all passes; counting them would hide how far guidance inflates the rest."""
    cond, uncond = torch.randn(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    generated = torch.tensor([0, 1, 1, 1, 1, 0])[None, :, None].bool()
    guidance = StreamGuidance(terms=(ClassifierFreeGuidance(scale=5.0),), rescale=1.0)
    guided = guidance.combine({"cond": cond, "uncond": uncond}, generated)
    assert guided[:, 1:5].std().item() == pytest.approx(cond[:, 1:5].std().item(), rel=1e-5)
    cond[:, 0] *= 100
    uncond[:, 0] = cond[:, 0]
    again = guidance.combine({"cond": cond, "uncond": uncond}, generated)
    torch.testing.assert_close(again[:, 1:5], guided[:, 1:5])


def test_combination_is_computed_in_float32() -> None:
    passes = {name: torch.ones(1, 2, 3, dtype=torch.bfloat16) for name in ("cond", "uncond")}
    guidance = StreamGuidance(terms=(ClassifierFreeGuidance(scale=3.0),))
    assert guidance.combine(passes).dtype == torch.float32


def test_projected_guidance_with_eta_zero_adds_nothing_parallel() -> None:
    cond, uncond = torch.randn(2, 1, 6, 5, generator=torch.Generator().manual_seed(1))
    delta = AdaptiveProjectedGuidance(scale=3.0, eta=0.0).delta(cond, uncond)
    assert (delta * cond).sum().item() == pytest.approx(0, abs=1e-4)
