"""What a request accepts, refuses and remembers."""

from fractions import Fraction
from typing import Any

import pytest

from soundstage.core.errors import RequestError
from soundstage.pipelines.request import GenerationRequest


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a red ball bounces", **fields})


def test_prompt_alone_is_a_request() -> None:
    assert request().seed == 0
    assert request().num_frames is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"seed": -1}, "seed=-1 is outside"),
        ({"seed": 2**63}, "is outside"),
        ({"width": 0}, "width=0 is not positive; the least is 1"),
        ({"height": -64}, "height=-64 is not positive"),
        ({"num_frames": 0}, "num_frames=0 is not positive"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is not positive"),
        ({"duration": -1.0}, "duration=-1.0 is not a positive number of seconds"),
        ({"duration": float("inf")}, "duration=inf is not a positive number of seconds"),
        ({"duration": 2.0, "num_frames": 9}, "num_frames=9 and duration=2.0 both say how long"),
        ({"frame_rate": "fast"}, "frame_rate='fast' is not a number"),
        ({"frame_rate": -24}, "frame_rate=-24 is outside"),
        ({"guidance_scale": 0.5}, "guidance_scale=0.5 is below 1, which switches it off"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan is not a finite number"),
        ({"audio_guidance_scale": float("inf")}, "audio_guidance_scale=inf is not a finite number"),
        ({"modality_scale": -1.0}, "modality_scale=-1 is below 0; 1 is off$"),
        ({"audio_stg_scale": -0.1}, "audio_stg_scale=-0.1 is below 0, which switches it off"),
        ({"guidance_rescale": 1.1}, "guidance_rescale=1.1 is above 1"),
        ({"stg_blocks": (3, -1)}, "stg_blocks: block -1 does not exist"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval=0.8, 0.2 is not a span"),
        ({"shift": float("nan")}, "shift=nan is not a finite number"),
        ({"apg_eta": 1.5}, r"apg_eta=1.5 is outside \[0, 1\]"),
        ({"apg_norm_threshold": 0.0}, "apg_norm_threshold=0 is not a positive length"),
        ({"apg_eta": 0.5}, "apg_eta is about guidance 'apg', and guidance is 'cfg'"),
        ({"apg_norm_threshold": 15.0, "guidance": "cfg_star"}, "guidance is 'cfg_star'"),
        ({"sigmas": (1.0, 0.0), "num_inference_steps": 5}, "sigmas and num_inference_steps=5 both say"),
        ({"sigmas": (1.0, 0.0), "schedule": "beta"}, "sigmas and schedule=beta both say"),
        ({"sigmas": (1.0, 0.0), "shift": 1.5}, "sigmas and shift=1.5 both say"),
        ({"refine_strength": 0.5}, "refine_strength=0.5 is about a second stage"),
        ({"audio_from": "stage2", "plan": "one_stage"}, "audio_from=stage2 is about a second stage"),
        ({"prompt_at": ("a ball",)}, "prompt_at='a ball' is not of the form START-END:PROMPT"),
        ({"prompt_transition": -1.0}, "prompt_transition=-1 is below 0$"),
        ({"nag_scale": 0.5}, "nag_scale=0.5 is below 1, which switches it off"),
        ({"audio_nag_scale": 0.0}, "audio_nag_scale=0 is below 1"),
        ({"nag_tau": 0.5}, "nag_tau=0.5 is below 1, the length of the unsteered result"),
        ({"nag_alpha": 1.5}, "nag_alpha=1.5 is outside"),
    ],
)
def test_bad_value_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request(**fields)


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        (24, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        ("30000/1001", Fraction(30000, 1001)),
        ("12.5", Fraction(25, 2)),
    ],
)
def test_frame_rate_becomes_an_exact_fraction(given: Any, rate: Fraction) -> None:
    assert request(frame_rate=given).frame_rate == rate


def test_duration_is_counted_in_frames_of_the_rate() -> None:
    assert request(duration=2.0).frames_at(Fraction(24)) == 48
    assert request(num_frames=9).frames_at(Fraction(24)) == 9
    assert request().frames_at(Fraction(24)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"frame_rate": "24000/1001", "shift": 1.5, "stg_blocks": (1, 2), "seed": 7},
        {"duration": 1.5, "negative_prompt": "", "sigmas": (1.0, 0.5, 0.0), "snap": "error"},
    ],
)
def test_request_survives_plain_data(fields: dict[str, Any]) -> None:
    asked = request(**fields)
    assert GenerationRequest.of(asked.to_dict()) == asked


def test_plain_data_leaves_out_what_was_left_to_the_model() -> None:
    assert "guidance_scale" not in request().to_dict()
    assert request(guidance_scale=2.0).to_dict()["guidance_scale"] == 2.0


def test_plain_integers_serve_as_numbers() -> None:
    asked = GenerationRequest.of({"prompt": "x", "guidance_scale": 3, "duration": 2})
    assert asked.guidance_scale == 3.0
    assert asked.frames_at(Fraction(24)) == 48


def test_unknown_name_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(RequestError, match=r"has no 'gidance_scale' \(did you mean 'guidance_scale'\?\)"):
        GenerationRequest.of({"prompt": "x", "gidance_scale": 3})


@pytest.mark.parametrize(
    ("flag", "field"),
    [("steps", "'num_inference_steps'"), ("size", "'width' and 'height'"), ("lora", "'loras', a list")],
)
def test_the_name_of_a_flag_is_told_with_that_of_the_field(flag: str, field: str) -> None:
    with pytest.raises(RequestError, match=f"a request has no '{flag}'; it is {field} here"):
        GenerationRequest.of({"prompt": "x", flag: 2})


def test_unknown_choice_is_an_error_with_the_choices() -> None:
    with pytest.raises(RequestError, match="sampler='eular' is not one of 'euler'"):
        GenerationRequest.of({"prompt": "x", "sampler": "eular"})
