"""Whole runs against the recorded reference: conditions, network, guidance, sampler and decoders together."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from golden_cases import GOLDEN, Case, cases, load_case, manifest
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.core.types import AV
from soundstage.diffusion.denoise import Recipe, denoise, start
from soundstage.diffusion.guidance import (
    ClassifierFreeGuidance,
    CrossModalGuidance,
    GuidancePlan,
    SpatioTemporalGuidance,
    StreamGuidance,
)
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.media.video import to_frames
from soundstage.models.transformer.patchify import unpatchify_audio, unpatchify_video
from soundstage.pipelines.conditions import StreamState, VideoGrid, empty_audio, empty_video, replace_frames
from soundstage.pipelines.decode import decode_audio, decode_video
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.loading import Components, load_checkpoint
from soundstage.pipelines.text_conditioning import Contexts

SAMPLING = [i for i in cases("e2e") if not i.endswith((".text", ".decode"))]


@cache
def components(name: str) -> Components:
    """Load a recorded checkpoint the way a pipeline does, but for the text encoder, which is not in it."""
    entry = manifest()["checkpoints"][name]
    return load_checkpoint(
        open_checkpoint(GOLDEN / entry["file"]),
        dtype=torch.float32,
        components=("transformer", "connectors", "video_vae", "audio_vae", "vocoder"),
        text_size=entry["text_encoder"],
    )


def guidance(params: dict[str, Any]) -> StreamGuidance:
    return StreamGuidance(
        terms=(
            ClassifierFreeGuidance(scale=params["cfg_scale"]),
            SpatioTemporalGuidance(scale=params["stg_scale"], blocks=tuple(params["stg_blocks"])),
            CrossModalGuidance(scale=params["modality_scale"]),
        ),
        rescale=params["rescale_scale"],
        rescale_over="all",  # as recorded
    )


def streams(case: Case, model: Components) -> tuple[AV[StreamState], VideoGrid]:
    params, sound = case.params, model.audio_geometry
    size = (params["frames"], params["height"], params["width"])
    grid = VideoGrid.of(model.video_geometry, *size, params["fps"])
    video = empty_video(grid)
    if "first_frame_latent" in case.inputs:
        strength = params["first_frame_strength"]
        video = replace_frames(video, grid, case.inputs["first_frame_latent"], strength=strength)
    return AV(video, empty_audio(sound, sound.num_tokens(params["frames"], params["fps"]))), grid


def contexts(case: Case) -> Contexts:
    def pair(suffix: str) -> AV[Tensor]:
        return AV(case.inputs[f"video_context{suffix}"], case.inputs[f"audio_context{suffix}"])

    negative = pair("_negative") if "video_context_negative" in case.inputs else None
    return Contexts(prompt=pair(""), negative=negative)


@pytest.mark.parametrize("rows_at_once", [4, 2, 1], ids=["together", "in_twos", "one_by_one"])
@pytest.mark.parametrize("case_id", SAMPLING)
def test_sampling_equals_the_reference(case_id: str, rows_at_once: int) -> None:
    case = load_case(case_id)
    model = components(case.spec["checkpoint"])
    given, grid = streams(case, model)
    plan = GuidancePlan(
        streams=AV(**{name: guidance(params) for name, params in case.params.get("guidance", {}).items()})
    )
    text = contexts(case)
    denoiser = TransformerDenoiser(model.transformer, given, text, plan, rows_at_once=rows_at_once)
    name = "gradient_estimation" if "gradient_estimation" in case_id else "euler"
    recipe = Recipe(sigmas=case.inputs["sigmas"], sampler=SAMPLERS[name], guidance=plan)
    noisy = start(given, AV(case.inputs["video_noise"], case.inputs["audio_noise"]))
    result = denoise(denoiser, given, noisy, recipe, draw=lambda like, purpose: like)
    video = unpatchify_video(given.video.result(result.video), grid.latent_shape, 1)
    case.check("video_latent", video)
    audio = unpatchify_audio(given.audio.result(result.audio), model.audio_geometry.channels)
    case.check("audio_latent", audio)


@pytest.mark.parametrize("case_id", [i for i in cases("e2e") if i.endswith(".text")])
def test_text_equals_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    connectors = components(case.spec["checkpoint"]).connectors
    for suffix in ("", "_negative"):
        states, mask = case.inputs[f"hidden_states{suffix}"], case.inputs[f"attention_mask{suffix}"]
        got = connectors(states, mask)
        case.check(f"video_context{suffix}", got.video)
        case.check(f"audio_context{suffix}", got.audio)


@pytest.mark.parametrize("case_id", [i for i in cases("e2e") if i.endswith(".decode")])
def test_decoding_equals_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    model = components(case.spec["checkpoint"])
    pixels = decode_video(model.video_vae, case.inputs["video_latent"])
    case.check("frames_u8", to_frames(pixels))
    case.check("mel", model.audio_vae.decode(case.inputs["audio_latent"]))
    case.check("waveform", decode_audio(model.audio_vae, model.vocoder, case.inputs["audio_latent"]))
    assert model.vocoder.sample_rate == case.params["sampling_rate"]


def test_every_recorded_run_is_checked() -> None:
    checked = [i for i in cases("e2e") if i.endswith((".text", ".decode"))] + SAMPLING
    assert sorted(checked) == sorted(cases("e2e"))
