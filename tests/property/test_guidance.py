"""Laws of guidance: neutral scales change nothing and cost nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundstage.core.types import AV
from soundstage.diffusion.cadence import Cadence
from soundstage.diffusion.guidance import (
    GUIDANCE,
    PASSES,
    CrossModalGuidance,
    GuidancePlan,
    SpatioTemporalGuidance,
    StreamGuidance,
)

SCALES = st.sampled_from([1.0, 1.5, 3.0, 7.0])


def predictions(seed: int, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 6, 5, generator=generator) for name in PASSES}


def stream(kind: str, text: float, stg: float, modality: float, rescale: float = 0.0) -> StreamGuidance:
    return StreamGuidance(
        terms=(
            GUIDANCE[kind](scale=text),
            SpatioTemporalGuidance(scale=stg, blocks=(1,)),
            CrossModalGuidance(scale=modality),
        ),
        rescale=rescale,
    )


@pytest.mark.parametrize("kind", GUIDANCE)
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_neutral_scales_change_nothing_and_need_one_pass(kind: str, rescale: float) -> None:
    guidance = stream(kind, 1.0, 0.0, 1.0, rescale)
    passes = predictions(0)
    assert Cadence(GuidancePlan(streams=AV(guidance, guidance))).passes(0.5, 0) == ("cond",)
    assert torch.equal(guidance.combine({"cond": passes["cond"]}), passes["cond"])


@pytest.mark.parametrize("kind", GUIDANCE)
@settings(max_examples=20, deadline=None)
@given(
    video=st.tuples(SCALES, st.sampled_from([0.0, 1.0]), SCALES),
    audio=st.tuples(SCALES, st.sampled_from([0.0, 1.0]), SCALES),
)
def test_a_pass_is_needed_exactly_if_either_stream_uses_it(kind: str, video: tuple, audio: tuple) -> None:
    plan = GuidancePlan(streams=AV(stream(kind, *video), stream(kind, *audio)))
    wanted = {
        "uncond": video[0] != 1 or audio[0] != 1,
        "perturbed": video[1] != 0 or audio[1] != 0,
        "isolated": video[2] != 1 or audio[2] != 1,
    }
    assert Cadence(plan).passes(0.5, 0) == ("cond", *(name for name, needed in wanted.items() if needed))


@pytest.mark.parametrize("kind", GUIDANCE)
@settings(max_examples=20, deadline=None)
@given(
    text=SCALES, stg=st.sampled_from([0.0, 1.0]), modality=SCALES, rescale=st.sampled_from([0.0, 0.7, 1.0])
)
def test_batch_item_is_guided_as_if_alone(
    kind: str, text: float, stg: float, modality: float, rescale: float
) -> None:
    guidance = stream(kind, text, stg, modality, rescale)
    passes = predictions(1)
    together = guidance.combine(passes)
    for i in range(2):
        alone = guidance.combine({name: tokens[i : i + 1] for name, tokens in passes.items()})
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("kind", GUIDANCE)
def test_equal_predictions_stay_where_they_are(kind: str) -> None:
    cond = predictions(2)["cond"]
    guided = stream(kind, 7.0, 1.0, 3.0).combine(dict.fromkeys(PASSES, cond))
    torch.testing.assert_close(guided, cond)


@settings(max_examples=20, deadline=None)
@given(text=st.floats(1.5, 9), seed=st.integers(0, 99))
def test_full_rescale_keeps_the_deviation_of_the_conditional_prediction(text: float, seed: int) -> None:
    passes = predictions(seed, batch=1)
    guided = stream("cfg", text, 0.0, 1.0, 1.0).combine(passes)
    assert math.isclose(guided.std().item(), passes["cond"].std().item(), rel_tol=1e-5)


def test_guided_result_does_not_depend_on_the_other_stream() -> None:
    video, audio = predictions(3), predictions(4)
    plan = GuidancePlan(streams=AV(stream("cfg", 3.0, 1.0, 3.0, 0.7), stream("cfg", 7.0, 1.0, 3.0, 0.7)))
    together = Cadence(plan).combine({name: AV(video[name], audio[name]) for name in PASSES}, 0.5, 0)
    alone = Cadence(GuidancePlan(streams=AV(video=plan.streams.video))).combine(
        {k: AV(v) for k, v in video.items()}, 0.5, 0
    )
    assert torch.equal(together.video, alone.video)
    assert alone.audio is None
