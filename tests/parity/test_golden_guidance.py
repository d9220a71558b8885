"""Guidance against the recorded reference values."""

import pytest
import torch

from golden_cases import cases, load_case
from soundstage.core.types import AV
from soundstage.diffusion.cadence import Cadence
from soundstage.diffusion.guidance import (
    GUIDANCE,
    BinnedGuidance,
    ClassifierFreeGuidance,
    CrossModalGuidance,
    GuidancePlan,
    SpatioTemporalGuidance,
    StreamGuidance,
)


@pytest.mark.parametrize("case_id", [i for i in cases("guidance") if ".multimodal." in i])
def test_combination_equals_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    guidance = StreamGuidance(
        terms=(
            ClassifierFreeGuidance(scale=case.params["cfg_scale"]),
            SpatioTemporalGuidance(scale=case.params["stg_scale"], blocks=(1,)),
            CrossModalGuidance(scale=case.params["modality_scale"]),
        ),
        rescale=case.params["rescale_scale"],
        rescale_over="all",
    )
    cadence = Cadence(GuidancePlan(streams=AV(video=guidance)))
    both = {name: AV(video=case.inputs[name]) for name in cadence.passes(1.0, 0)}
    first = {name: AV(video=case.inputs[name][:1]) for name in cadence.passes(1.0, 0)}
    case.check("pred", cadence.combine(both, 1.0, 0).video)
    case.check("pred_single", cadence.combine(first, 1.0, 0).video)


@pytest.mark.parametrize("case_id", [i for i in cases("guidance") if ".multimodal." in i])
def test_default_rescaling_of_one_item_equals_the_reference(case_id: str) -> None:
    """Per sample over the generated tokens is over everything when there is one sample and nothing kept."""
    case = load_case(case_id)
    guidance = StreamGuidance(
        terms=(
            ClassifierFreeGuidance(scale=case.params["cfg_scale"]),
            SpatioTemporalGuidance(scale=case.params["stg_scale"], blocks=(1,)),
            CrossModalGuidance(scale=case.params["modality_scale"]),
        ),
        rescale=case.params["rescale_scale"],
    )
    passes = {name: case.inputs[name][:1] for name in ("cond", "uncond", "perturbed", "isolated")}
    case.check("pred_single", guidance.combine(passes))


@pytest.mark.parametrize("case_id", [i for i in cases("guidance") if ".delta." in i])
def test_terms_equal_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    kind, scale = case.params["kind"], case.params["scale"]
    if kind == "stg":
        term = SpatioTemporalGuidance(scale=scale, blocks=(0,))
    else:
        options = {name: case.params[name] for name in ("eta", "norm_threshold") if name in case.params}
        term = GUIDANCE[kind.removesuffix("_threshold")](scale=scale, **options)
    case.check("delta", term.delta(case.inputs["cond"], case.inputs["uncond"]))


def test_skipped_steps_equal_the_reference() -> None:
    case = load_case("guidance.skip_step")
    rows = [[StreamGuidance(skip_step=row).skips(step) for step in range(8)] for row in range(4)]
    case.check("skipped", torch.tensor(rows))


def test_guidance_by_noise_level_equals_the_reference() -> None:
    case = load_case("guidance.sigma_bins")
    bounds = [
        round(bound, 6) for bound in case.inputs["upper_bounds"].tolist()
    ]  # decimals, as people write them
    bins = zip(bounds, case.inputs["bin_cfg_scale"].tolist(), strict=True)
    guidance = BinnedGuidance(
        bins=tuple(
            (bound, StreamGuidance(terms=(ClassifierFreeGuidance(scale=scale),))) for bound, scale in bins
        )
    )
    scales = [guidance.at(sigma).terms[0].scale for sigma in case.inputs["sigma"].tolist()]
    case.check("cfg_scale", torch.tensor(scales))
