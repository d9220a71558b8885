"""A request and a checkpoint's defaults become sizes, noise levels and guidance."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from soundstage.checkpoints.generation import SamplingDefaults, StreamGuidance
from soundstage.checkpoints.versions.ltx_2_3 import LTX_2_3
from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.diffusion.cadence import Cadence
from soundstage.diffusion.guidance import AdaptiveProjectedGuidance
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.diffusion.schedules import shift_for_tokens, shifted
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.plan import Basis, Plan, Stage, make_plan
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.settle import describe, lines
from soundstage.pipelines.upsampling import UpsamplerChoice

GEOMETRY = VideoGeometry(spatial_factor=8, channels=32, patch_size=2)
OFFICIAL = SamplingDefaults(
    num_inference_steps=30,
    schedule="shifted",
    sampler="euler",
    video=StreamGuidance(guidance_scale=3.0, stg_scale=1.0, modality_scale=3.0, guidance_rescale=0.7),
    audio=StreamGuidance(guidance_scale=7.0, stg_scale=1.0, modality_scale=3.0, guidance_rescale=0.7),
    stg_blocks=(28,),
    height=64,
    width=96,
    num_frames=17,
)
DISTILLED = replace(
    OFFICIAL, num_inference_steps=8, schedule="distilled", video=StreamGuidance(), audio=StreamGuidance()
)


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a red ball bounces", **fields})


def canvas(**fields: Any) -> Canvas:
    return Canvas.of(request(**fields), OFFICIAL, GEOMETRY)


def basis(defaults: SamplingDefaults = OFFICIAL, variant: str = "dev", **presets: Any) -> Basis:
    generation = replace(LTX_2_3, presets={"dev": defaults, **presets})
    return Basis(generation=generation, variant=variant, geometry=GEOMETRY, audio_geometry=AudioGeometry())


def plan(defaults: SamplingDefaults = OFFICIAL, **fields: Any) -> Plan:
    return make_plan(request(**fields), basis(defaults))


def test_what_is_not_asked_for_is_the_checkpoints_choice() -> None:
    settled = canvas()
    assert (settled.num_frames, settled.height, settled.width) == (17, 64, 96)
    assert settled.frame_rate == 24
    assert settled.notes == ()
    assert settled.padded_frames == 17


def test_size_off_the_grid_is_generated_larger_and_cut_to_the_middle() -> None:
    settled = canvas(width=100, height=50)
    assert settled.grid.latent_shape[1:] == (8, 14)
    assert "100x50 does not fit the grid of 16 pixels: generated at 112x64" in settled.notes[0]
    pixels = torch.arange(64.0)[None, None, :, None].expand(3, 17, 64, 112)
    cut = settled.cut(pixels)
    assert cut.shape == (3, 17, 50, 100)
    assert cut[0, 0, 0, 0] == 7


def test_length_off_the_grid_is_generated_longer_and_cut_at_the_end() -> None:
    settled = canvas(duration=1.0)
    assert (settled.num_frames, settled.padded_frames) == (24, 25)
    assert "24 frames are not 8 k + 1: generated 25" in settled.notes[0]
    pixels = torch.arange(25.0)[None, :, None, None].expand(3, 25, 64, 96)
    assert settled.cut(pixels)[0, :, 0, 0].tolist() == list(range(24))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 100}, "width=100 is not a multiple of 16; the nearest are 96 and 112"),
        ({"num_frames": 24}, "num_frames=24 is not 8 k [+] 1; the nearest are 17 and 25"),
    ],
)
def test_snap_error_refuses_instead(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        canvas(snap="error", **fields)


def test_sound_is_exactly_as_long_as_the_picture() -> None:
    settled = canvas(num_frames=24, frame_rate="24000/1001")
    assert settled.num_samples(48_000) == round(Fraction(24 * 1001, 24000) * 48_000)


def test_clip_beyond_the_training_range_is_noted() -> None:
    assert any("21.0 s is beyond the 20.3 s" in note for note in canvas(num_frames=505).notes)
    for frames, rate in ((481, 24), (505, 25)):  # 20 s and the frames up to the next 8 k + 1
        whole = canvas(num_frames=frames, frame_rate=rate)
        assert whole.windows is None
        assert not whole.notes
    assert canvas(num_frames=489).windows is not None


@pytest.mark.parametrize("size", [1, 7, 16, 500])
def test_any_size_is_accepted(size: int) -> None:
    settled = canvas(width=size, height=size, num_frames=size, window=size)
    pixels = torch.zeros(
        3, settled.padded_frames, *(n * 8 for n in settled.grid.latent_shape[1:]), device="meta"
    )
    assert settled.cut(pixels).shape == (3, size, size, size)


def test_guidance_is_the_checkpoints_unless_asked_otherwise() -> None:
    guidance = plan(guidance_scale=5.0, audio_stg_scale=0.0).stages[0].recipe.guidance
    assert [term.scale for term in guidance.streams.video.terms] == [5.0, 1.0, 3.0]
    assert [term.scale for term in guidance.streams.audio.terms] == [7.0, 0.0, 3.0]
    assert guidance.streams.video.rescale == 0.7
    assert guidance.blocks.video == {28}
    assert guidance.blocks.audio == frozenset()


def test_everything_off_needs_one_pass_and_no_negative_prompt() -> None:
    unguided = plan(DISTILLED)
    assert unguided.stages[0].recipe.guidance.needs() == set()
    assert not unguided.needs_negative_prompt
    assert plan().needs_negative_prompt


def test_kind_and_interval_of_guidance_are_passed_on() -> None:
    guidance = plan(guidance="apg", guidance_interval=(0.2, 0.9)).stages[0].recipe.guidance
    term = guidance.streams.video.terms[0]
    assert isinstance(term, AdaptiveProjectedGuidance)
    assert (term.eta, term.norm_threshold) == (0, 0)  # the parallel part is left out
    chosen = plan(guidance="apg", apg_eta=0.25, apg_norm_threshold=15.0).stages[0].recipe.guidance
    for stream in (chosen.streams.video, chosen.streams.audio):
        assert (stream.terms[0].eta, stream.terms[0].norm_threshold) == (0.25, 15.0)
    cadence = Cadence(guidance)
    assert cadence.passes(0.95, 0) == ("cond",)
    assert len(cadence.passes(0.5, 0)) == 4


def test_blocks_can_be_chosen_per_stream() -> None:
    guidance = plan(stg_blocks=(1, 2), audio_stg_blocks=(3,)).stages[0].recipe.guidance
    assert (guidance.blocks.video, guidance.blocks.audio) == ({1, 2}, {3})


def test_stg_without_blocks_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"stg_scale=1\.0 needs stg_blocks"):
        plan(replace(OFFICIAL, stg_blocks=()))


def test_steps_and_schedule_are_the_checkpoints_unless_asked_otherwise() -> None:
    assert len(plan().stages[0].recipe.sigmas) == 31
    assert len(plan(num_inference_steps=4).stages[0].recipe.sigmas) == 5
    assert len(plan(DISTILLED).stages[0].recipe.sigmas) == 9
    assert len(plan(schedule="distilled").stages[0].recipe.sigmas) == 9


def test_distilled_checkpoint_refuses_another_number_of_steps() -> None:
    with pytest.raises(RequestError, match="schedule 'distilled' always has 8"):
        plan(DISTILLED, num_inference_steps=4)


def test_shift_can_follow_the_tokens() -> None:
    official, by_tokens = plan().stages[0].recipe.sigmas, plan(shift="tokens").stages[0].recipe.sigmas
    assert (by_tokens[1:-2] < official[1:-2]).all()


def test_a_shift_of_zero_is_no_shift() -> None:
    asked = plan(shift=0.0, num_inference_steps=6).stages[0].recipe.sigmas
    assert asked.tolist() == pytest.approx([1, 0.82, 0.64, 0.46, 0.28, 0.1, 0])  # even, the last at 0.1


def test_explicit_levels_set_the_noise_to_start_with() -> None:
    stage = plan(sigmas=(0.5, 0.25, 0.0)).stages[0]
    assert stage.recipe.sigmas.tolist() == [0.5, 0.25, 0.0]
    assert stage.noise_scale == 0.5
    assert plan().stages[0].noise_scale == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_asked_for(name: Any) -> None:
    assert plan(sampler=name).stages[0].recipe.sampler is SAMPLERS[name]


HQ = replace(OFFICIAL, num_inference_steps=15, sampler="res_2s", height=32, width=64)
ENLARGED = UpsamplerChoice(name="x2.safetensors", scale=Fraction(2))


def staged(variant: str = "dev", upsampler: UpsamplerChoice = ENLARGED, **fields: Any) -> Plan:
    presets = {"distilled": DISTILLED, "hq": HQ}
    own = DISTILLED if variant == "distilled" else OFFICIAL
    return make_plan(request(**fields), basis(own, variant, **presets), upsampler=upsampler)


def levels(stage: Stage) -> list[float]:
    return [round(sigma, 6) for sigma in stage.recipe.sigmas.tolist()]


def test_first_stage_has_the_default_size_and_the_second_twice_that() -> None:
    first, second = staged(plan="two_stage").stages
    assert first.grid.latent_shape == (3, 8, 12)
    assert second.grid.latent_shape == (3, 16, 24)
    assert (staged(plan="two_stage").canvas.width, staged(plan="two_stage").canvas.height) == (192, 128)


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(3, 2), Fraction(4)])
@pytest.mark.parametrize("width", [1, 16, 33, 100, 160, 200])
def test_enlarging_the_first_stage_gives_the_second_which_holds_the_clip(scale: Fraction, width: int) -> None:
    choice = UpsamplerChoice(name="a.safetensors", scale=scale)
    planned = staged(upsampler=choice, plan="two_stage", width=width, height=width)
    first, second = (stage.grid.latent_shape for stage in planned.stages)
    assert [-(-n * scale.numerator // scale.denominator) for n in first[1:]] == list(second[1:])
    assert second[2] * 8 >= width
    assert first[0] == second[0] == 3


def test_size_that_enlarging_cannot_reach_is_refused_if_asked() -> None:
    choice = UpsamplerChoice(name="a.safetensors", scale=Fraction(2))
    with pytest.raises(
        RequestError, match="48x48 cannot be reached by enlarging 2 times; the next that can is 64x64"
    ):
        staged(upsampler=choice, plan="two_stage", width=48, height=48, snap="error")
    notes = staged(upsampler=choice, plan="two_stage", width=48, height=48).canvas.notes
    assert "48x48 does not fit the grid of 16 pixels in stages of 1 and 2: generated at 64x64" in notes[0]


def test_plan_follows_from_what_is_given() -> None:
    assert staged().name == "one_stage"
    assert len(staged().stages) == 1
    given = {"upsampler": "x2.safetensors"}
    assert make_plan(request(**given), basis(), upsampler=ENLARGED).name == "two_stage"
    distilled = basis(DISTILLED, "distilled", distilled=DISTILLED)
    assert make_plan(request(**given), distilled, upsampler=ENLARGED).name == "distilled"


def test_distilled_model_refines_in_three_fixed_steps_without_guidance() -> None:
    first, second = staged("distilled", plan="distilled").stages
    assert levels(first)[:2] == [1.0, 0.99375]
    assert levels(second) == [0.909375, 0.725, 0.421875, 0.0]
    assert second.noise_scale == pytest.approx(0.909375)
    assert second.recipe.guidance.needs() == set()
    assert second.sampler == "euler"


def test_model_that_is_not_distilled_goes_through_its_own_levels_guided_and_says_so() -> None:
    planned = staged(plan="two_stage")
    first, second = planned.stages
    assert levels(second)[0] == 0.909375
    assert levels(second)[1:] == [level for level in levels(first) if level < 0.909375]
    assert second.recipe.guidance == first.recipe.guidance
    assert "the second stage takes" in planned.notes[-1]
    assert "--lora ltx-2.3-22b-distilled-lora-384-1.1@2" in planned.notes[-1]


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(0.6, [0.6, 0.421875, 0.0]), (0.3, [0.3, 0.0]), (0.98, [0.98, 0.975, 0.909375, 0.725, 0.421875, 0.0])],
)
def test_refining_level_can_be_chosen(strength: float, expected: list[float]) -> None:
    planned = staged("distilled", plan="two_stage", refine_strength=strength)
    assert levels(planned.stages[1]) == expected


def test_hq_takes_half_the_steps_of_second_order_on_a_schedule_for_its_tokens() -> None:
    first, second = staged(plan="hq").stages
    assert (first.sampler, second.sampler) == ("res_2s", "res_2s")
    assert len(levels(first)) == 16
    assert first.grid.latent_shape == (3, 4, 8)
    shift = shift_for_tokens(first.grid.num_tokens)
    assert levels(first) == [round(x, 6) for x in shifted(15, shift=shift).tolist()]


def test_model_without_an_hq_way_of_its_own_gets_one_of_equal_cost() -> None:
    planned = make_plan(request(plan="hq"), basis(), upsampler=ENLARGED)
    assert planned.stages[0].sampler == "res_2s"
    assert len(levels(planned.stages[0])) == 16
    assert planned.stages[0].recipe.guidance.needs() == {"uncond", "isolated"}


@pytest.mark.parametrize(
    ("variant", "fields", "message"),
    [
        (
            "dev",
            {"plan": "distilled"},
            "needs a distilled model, which LTX-2.3 is not; add --lora ltx-2.3-22b",
        ),
        ("distilled", {"plan": "hq"}, "plan 'hq' guides a model, and a distilled one is not to be"),
    ],
)
def test_plans_that_a_model_is_not_made_for_are_refused(variant: str, fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        staged(variant, **fields)


def test_sound_of_the_first_stage_is_kept_unless_asked_otherwise() -> None:
    assert staged(plan="two_stage").stages[1].keeps_sound
    assert not staged(plan="two_stage", audio_from="stage2").stages[1].keeps_sound


def test_terms_apply_when_the_request_says() -> None:
    fields = {
        "guidance_interval": (0.1, 0.9),
        "stg_interval": (0.2, 0.8),
        "audio_guidance_interval": (0.3, 0.7),
        "audio_modality_interval": (0.4, 0.6),
        "stg_every": 3,
        "audio_guidance_every": 2,
    }
    streams = plan(**fields).stages[0].recipe.guidance.streams
    video, audio = (
        [(t.when.interval, t.when.every) for t in s.terms] for s in (streams.video, streams.audio)
    )
    assert video == [((0.1, 0.9), 1), ((0.2, 0.8), 3), ((0.1, 0.9), 1)]
    assert audio == [((0.3, 0.7), 2), ((0.3, 0.7), 2), ((0.4, 0.6), 2)]


def test_plan_is_shown_with_what_it_will_cost() -> None:
    shown = describe(staged("distilled", plan="distilled"))
    assert [stage["passes"] for stage in shown["stages"]] == [{"cond": 8}, {"cond": 3}]
    assert shown["network_calls"] == 11
    assert shown["stages"][1]["sound"] == "given"
    text = "\n".join(lines(shown))
    assert "stage 2, refine: 192x128" in text
    assert "levels   0.9094 0.725 0.4219 0" in text


def test_long_plan_counts_the_passes_of_all_windows() -> None:
    shown = describe(plan(num_frames=41, window=17))
    assert shown["windows"] == {"count": 4, "num_frames": 17, "overlap": 9}
    assert shown["network_calls"] == 4 * 30 * 4


@pytest.mark.parametrize(
    ("loras", "distilled"),
    [
        (("ltx-2.3-22b-distilled-lora-384-1.1@2",), True),
        (("folder/my-distilled.safetensors:0.5",), True),
        (("ltx-2.3-22b-distilled-lora-384-1.1@1",), False),
        (("distilled/style.safetensors",), False),
        (("ltx-2.3-22b-distilled-lora-384-1.1:0",), False),
    ],
)
def test_lora_that_makes_the_second_stage_distilled_is_told_by_name_and_stage(
    loras: tuple[str, ...], distilled: bool
) -> None:
    planned = staged(plan="two_stage", loras=loras)
    assert (len(levels(planned.stages[1])) == 4) == distilled
    assert (planned.stages[1].recipe.guidance.needs() == set()) == distilled
    assert any("the second stage takes" in note for note in planned.notes) != distilled


def test_guidance_that_does_not_suit_the_model_is_noted() -> None:
    distilled = basis(DISTILLED, "distilled", distilled=DISTILLED)
    assert plan().notes == make_plan(request(), distilled).notes == ()
    (note,) = make_plan(request(guidance_scale=4.0), distilled).notes
    assert "the model is distilled, and guidance overdoes" in note
    off = {"guidance_scale": 1.0, "modality_scale": 1.0, "stg_scale": 0.0}
    (note,) = plan(**off, **{f"audio_{name}": scale for name, scale in off.items()}).notes
    assert "without guidance it follows the prompt poorly" in note
    assert "--lora ltx-2.3-22b-distilled-lora-384-1.1" in note
    loras = ("ltx-2.3-22b-distilled-lora-384-1.1",)
    by_lora = basis(distilled=DISTILLED)
    assert make_plan(request(loras=loras), by_lora).notes == ()
    assert "is distilled" in make_plan(request(loras=loras, guidance_scale=4.0), by_lora).notes[0]


def test_references_are_followed_without_new_noise() -> None:
    ancestral = replace(DISTILLED, sampler="euler_ancestral")
    newest = basis(ancestral, "distilled", distilled=ancestral)
    assert make_plan(request(), newest).stages[0].sampler == "euler_ancestral"
    for given in ({"reference_video": "dance.mp4"}, {"reference_audio": Path("voice.wav")}):
        assert make_plan(request(**given), newest).stages[0].sampler == "euler"
        asked = make_plan(request(**given, sampler="euler_ancestral"), newest)
        assert asked.stages[0].sampler == "euler_ancestral"


@pytest.mark.parametrize(
    ("fields", "num_steps"),
    [
        ({"loras": ("my-distilled.safetensors",)}, 8),
        ({"loras": ("my-distilled.safetensors:0.8",), "plan": "one_stage"}, 8),
        ({"loras": ("my-distilled.safetensors:0",)}, 30),
        ({"loras": ("style.safetensors",)}, 30),
        ({"loras": ("my-distilled.safetensors",), "schedule": "shifted", "num_inference_steps": 5}, 5),
        ({"loras": ("my-distilled.safetensors",), "num_inference_steps": 5}, 5),
        ({"loras": ("my-distilled.safetensors",), "plan": "two_stage"}, 30),
    ],
)
def test_distilled_lora_makes_a_single_stage_distilled(fields: dict[str, Any], num_steps: int) -> None:
    stage = make_plan(request(**fields), basis(OFFICIAL, distilled=DISTILLED)).stages[0]
    assert len(levels(stage)) == num_steps + 1
    assert (stage.recipe.guidance.needs() == set()) == (num_steps < 30)


def test_distilled_lora_does_not_keep_guidance_from_being_asked_for() -> None:
    asked = request(loras=("my-distilled.safetensors",), guidance_scale=2.0)
    stage = make_plan(asked, basis(OFFICIAL, distilled=DISTILLED)).stages[0]
    assert stage.recipe.guidance.needs() == {"uncond"}
    assert len(levels(stage)) == 9


def test_lora_makes_the_distilled_plan_possible() -> None:
    planned = staged(plan="distilled", loras=("ltx-2.3-22b-distilled-lora-384-1.1",))
    assert [len(levels(stage)) for stage in planned.stages] == [9, 4]
