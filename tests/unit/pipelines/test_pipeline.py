"""The main job on a tiny model: prompt in, clip with sound out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from soundstage.core.errors import Cancelled, CheckpointError, RequestError
from soundstage.core.progress import Progress
from soundstage.media.video import read_clip
from soundstage.pipelines.loading import load_components
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.wording import NEGATIVE_PROMPT, negative_prompts

PROMPT = "a red ball bounces on a wooden floor"
SMALL = {"num_frames": 9, "width": 32, "height": 16, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_embedded(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def pipeline(file: Path) -> Pipeline:
    return Pipeline.load(file, device="cpu")


def test_prompt_becomes_a_clip_with_sound_of_the_same_length(pipeline: Pipeline, tmp_path: Path) -> None:
    made = pipeline(PROMPT, seed=7, **SMALL)
    assert made.pixels.shape == (3, 9, 16, 32)
    assert made.waveform.shape == (2, 9000)
    assert made.sample_rate == 24_000
    assert made.pixels.abs().max() <= 1
    assert made.model == "tiny.safetensors"
    assert made.request.prompt == PROMPT
    clip = read_clip(made.save(tmp_path / "clip.mp4"))
    assert clip.frames.shape == (9, 16, 32, 3)


def test_same_seed_same_file_and_another_seed_another_clip(pipeline: Pipeline, tmp_path: Path) -> None:
    first, again, other = (pipeline(PROMPT, seed=seed, **SMALL) for seed in (7, 7, 8))
    assert first.save(tmp_path / "a.mp4").read_bytes() == again.save(tmp_path / "b.mp4").read_bytes()
    assert not torch.equal(first.pixels, other.pixels)
    assert not torch.equal(first.waveform, other.waveform)


def test_prompt_changes_both_streams(pipeline: Pipeline) -> None:
    first, other = (pipeline(prompt, **SMALL) for prompt in (PROMPT, "a small blue cube falls on metal"))
    assert not torch.equal(first.pixels, other.pixels)
    assert not torch.equal(first.waveform, other.waveform)


def test_what_does_not_fit_the_grid_is_cut_and_noted(pipeline: Pipeline) -> None:
    made = pipeline(PROMPT, duration=0.5, frame_rate="24000/1001", width=21, height=18, num_inference_steps=1)
    assert made.pixels.shape == (3, 12, 18, 21)
    assert made.waveform.shape == (2, round(12 * 1001 / 24000 * 24000))
    assert len(made.notes) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler": "euler_ancestral"},
        {"sampler": "res_2s"},
        {"sampler": "gradient_estimation", "schedule": "beta"},
        {"schedule": "distilled", "num_inference_steps": 8},
        {"sigmas": (1.0, 0.5, 0.0), "num_inference_steps": None},
        {"noise_order": "reference"},
        {"guidance_scale": 1.0, "audio_guidance_scale": 1.0},
        {
            "guidance": "apg",
            "modality_scale": 3.0,
            "stg_scale": 1.0,
            "stg_blocks": (1,),
            "guidance_rescale": 0.7,
        },
    ],
)
def test_every_way_of_sampling_runs(pipeline: Pipeline, fields: dict[str, Any]) -> None:
    made = pipeline(PROMPT, **{**SMALL, **fields})
    assert made.pixels.isfinite().all()
    assert made.waveform.isfinite().all()


def test_progress_tells_of_every_stage_in_order(pipeline: Pipeline) -> None:
    events: list[Progress] = []
    pipeline("something new to encode", on_progress=events.append, **SMALL)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["encode_prompt", "denoise", "decode_video", "decode_audio"]
    for stage in stages:
        steps = [(event.step, event.num_steps) for event in events if event.stage == stage]
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]


def test_cancelling_stops_the_work(pipeline: Pipeline) -> None:
    def stop(event: Progress) -> None:
        if event.stage == "denoise" and event.step == 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        pipeline(PROMPT, on_progress=stop, **SMALL)


def test_clips_of_a_prompt_take_the_seeds_that_follow(pipeline: Pipeline) -> None:
    made = list(pipeline.each([PROMPT, "a small blue cube falls on metal"], num_videos=2, seed=7, **SMALL))
    assert [(clip.request.prompt[:5], clip.request.seed) for clip in made] == [
        ("a red", 7),
        ("a red", 8),
        ("a sma", 7),
        ("a sma", 8),
    ]
    assert torch.equal(made[1].pixels, pipeline(PROMPT, seed=8, **SMALL).pixels)


def test_all_requests_are_checked_before_the_first_clip(pipeline: Pipeline) -> None:
    with pytest.raises(RequestError, match="always has 8"):
        pipeline.each([PROMPT], schedule="distilled", num_inference_steps=3)
    with pytest.raises(RequestError, match="num_videos=0"):
        pipeline.each([PROMPT], num_videos=0)


def test_request_can_be_given_whole_and_changed(pipeline: Pipeline) -> None:
    request = GenerationRequest(prompt=PROMPT, seed=7, **SMALL)
    assert torch.equal(pipeline(request).pixels, pipeline(PROMPT, seed=7, **SMALL).pixels)
    assert pipeline(request, seed=8).request.seed == 8


def test_prompt_longer_than_the_model_reads_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(
        RequestError, match=r"a prompt of 2000 words has \d+ tokens; this model reads 64, about"
    ):
        pipeline("ball " * 2000, **SMALL)


def test_blocks_that_the_model_does_not_have_are_refused_before_anything_runs(pipeline: Pipeline) -> None:
    events: list[Progress] = []
    with pytest.raises(RequestError, match="stg_blocks: block 28 does not exist; this model's are 0 to 1"):
        pipeline(PROMPT, stg_scale=1.0, stg_blocks=(1, 28), on_progress=events.append, **SMALL)
    assert events == []


def test_negative_prompt_is_encoded_only_if_a_pass_needs_it(pipeline: Pipeline) -> None:
    pipeline.prompts._contexts.clear()
    pipeline(PROMPT, guidance_scale=1.0, audio_guidance_scale=1.0, negative_prompt="red", **SMALL)
    assert list(pipeline.prompts._contexts) == [PROMPT]
    pipeline(PROMPT, negative_prompt="red", **SMALL)
    assert list(pipeline.prompts._contexts) == [PROMPT, "red"]


def test_embedded_model_is_steered_away_from_the_empty_prompt_and_others_from_defects(
    pipeline: Pipeline,
) -> None:
    request, generation = GenerationRequest(prompt=PROMPT), pipeline.components.generation
    assert negative_prompts(request, generation) == ("", "")
    another = replace(generation, name="another")
    assert negative_prompts(request, another) == (NEGATIVE_PROMPT, NEGATIVE_PROMPT)


def test_kept_contexts_are_bounded(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soundstage.pipelines.prompt_encoder.MAX_KEPT_CONTEXTS", 2)
    pipeline.prompts._contexts.clear()
    plain = {**SMALL, "num_inference_steps": 1, "guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    for prompt in ("one", "two", "three"):
        pipeline(prompt, **plain)
    assert list(pipeline.prompts._contexts) == ["two", "three"]


def test_the_record_tells_weights_of_the_same_name_apart(file: Path, tmp_path: Path) -> None:
    def record(path: Path) -> dict[str, Any]:
        return Pipeline.load(path, device="cpu")(PROMPT, **SMALL).metadata

    first, again = record(file), record(file)
    assert first == again
    assert len(first["weights"]) == 16
    other = tmp_path / file.name
    content = bytearray(file.read_bytes())
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    weight = header["model.diffusion_model.patchify_proj.weight"]
    content[8 + size + weight["data_offsets"][0]] ^= 1
    other.write_bytes(content)
    changed = record(other)
    assert changed["model"] == first["model"]
    assert changed["weights"] != first["weights"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_noise_is_drawn_in_the_type_of_the_network(file: Path, dtype: torch.dtype) -> None:
    loaded = Pipeline.load(file, device="cpu", dtype=dtype)
    seen: list[torch.Tensor] = []
    hook = loaded.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].latents))
    loaded(PROMPT, seed=5, noise_order="reference", **SMALL)
    hook.remove()
    expected = torch.randn(seen[0].shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
    torch.testing.assert_close(seen[0].float(), expected.float(), atol=1e-5, rtol=0)


def test_half_precision_weights_work(file: Path) -> None:
    made = Pipeline.load(file, device="cpu", dtype="bfloat16")(PROMPT, **SMALL)
    assert made.pixels.dtype == made.waveform.dtype == torch.float32
    assert made.pixels.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "device 'cuda:99' is not here; there is cpu"),
        ({"dtype": "int4"}, "dtype 'int4'"),
    ],
)
def test_unknown_device_or_number_format_is_refused(
    file: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Pipeline.load(file, **options)


def test_components_without_one_that_is_needed_are_refused(file: Path) -> None:
    with pytest.raises(CheckpointError, match="was loaded without its text"):
        Pipeline(load_components(file, components=("transformer",)))
