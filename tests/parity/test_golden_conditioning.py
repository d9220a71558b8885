"""Conditions against the recorded reference values."""

import pytest

from golden_cases import Case, cases, load_case
from soundstage.core.geometry import VideoGeometry
from soundstage.diffusion.flow import starting_point
from soundstage.pipelines.conditions import (
    StreamState,
    VideoGrid,
    append_keyframe,
    append_reference,
    empty_video,
    replace_frames,
    start_from,
)


def apply(case: Case) -> StreamState:
    params = case.params
    grid = VideoGrid(
        geometry=VideoGeometry(channels=case.inputs["initial_latent"].shape[1]),
        num_latent_frames=params["latent_frames"],
        rows=params["latent_height"],
        columns=params["latent_width"],
        frame_rate=params["fps"],
    )
    state = start_from(empty_video(grid), grid.tokens(case.inputs["initial_latent"]))
    if "latent" in case.inputs:
        latents, strength = case.inputs["latent"], params["strength"]
        state = replace_frames(state, grid, latents, index=params["latent_idx"], strength=strength)
    if "keyframe" in case.inputs:
        state = append_keyframe(
            state,
            grid,
            case.inputs["keyframe"],
            frame=params["frame_idx"],
            num_frames=params["num_pixel_frames"],
            strength=params["strength"],
        )
    if "reference" in case.inputs:
        state = append_reference(
            state,
            grid,
            case.inputs["reference"],
            strength=params["reference_strength"],
            downscale_factor=params["downscale_factor"],
            attention_strength=params["attention_strength"],
        )
    return state


@pytest.mark.parametrize("case_id", [i for i in cases("conditioning") if "noising" not in i])
def test_condition_equals_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    state = apply(case)
    case.check("latent", state.latents)
    case.check("clean_latent", state.clean)
    case.check("denoise_mask", state.denoise_mask)
    case.check("positions", state.positions)
    if "attention_mask" in case.outputs:
        case.check("attention_mask", state.attention_weights.weights())
    else:
        assert state.attention_weights is None


@pytest.mark.parametrize("case_id", [i for i in cases("conditioning") if "noising" in i])
def test_noising_equals_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    inputs = [case.inputs[name] for name in ("latent", "clean_latent", "denoise_mask", "noise")]
    case.check("noised", starting_point(*inputs, case.params["noise_scale"]))
