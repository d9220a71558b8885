"""Whole runs against the recorded reference: conditions, network, guidance, sampler and decoders together."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from golden_cases import Case, cases, load_case, load_checkpoint
from soundstage.core.geometry import AudioGeometry, VideoGeometry
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
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.patchify import unpatchify_audio, unpatchify_video
from soundstage.pipelines.conditions import StreamState, VideoGrid, empty_audio, empty_video, replace_frames
from soundstage.pipelines.denoiser import Contexts, TransformerDenoiser

SAMPLING = [i for i in cases("e2e") if not i.endswith((".text", ".decode"))]


@cache
def load_transformer(checkpoint: str) -> AVTransformer:
    config, tensors = load_checkpoint(checkpoint, "model.diffusion_model.")
    with torch.device("meta"):
        model = AVTransformer(TransformerConfig.from_header(config["transformer"]))
    own = {name: tensor for name, tensor in tensors.items() if "embeddings_connector" not in name}
    model.load_state_dict(own, assign=True)
    return model.eval()


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


def streams(case: Case) -> tuple[AV[StreamState], VideoGrid]:
    params = case.params
    geometry = VideoGeometry(channels=params["video_latent"][1])
    grid = VideoGrid.of(geometry, params["frames"], params["height"], params["width"], params["fps"])
    video = empty_video(grid)
    if "first_frame_latent" in case.inputs:
        strength = params["first_frame_strength"]
        video = replace_frames(video, grid, case.inputs["first_frame_latent"], strength=strength)
    sound = AudioGeometry(channels=params["audio_latent"][1])
    return AV(video, empty_audio(sound, sound.num_tokens(params["frames"], params["fps"]))), grid


def contexts(case: Case) -> Contexts:
    def pair(suffix: str) -> AV[Tensor]:
        return AV(case.inputs[f"video_context{suffix}"], case.inputs[f"audio_context{suffix}"])

    negative = pair("_negative") if "video_context_negative" in case.inputs else None
    return Contexts(prompt=pair(""), negative=negative)


@pytest.mark.parametrize("batch_passes", [True, False], ids=["together", "one_by_one"])
@pytest.mark.parametrize("case_id", SAMPLING)
def test_sampling_equals_the_reference(case_id: str, batch_passes: bool) -> None:
    case = load_case(case_id)
    given, grid = streams(case)
    plan = GuidancePlan(
        streams=AV(**{name: guidance(params) for name, params in case.params.get("guidance", {}).items()})
    )
    transformer = load_transformer(case.spec["checkpoint"])
    denoiser = TransformerDenoiser(transformer, given, contexts(case), plan, batch_passes=batch_passes)
    name = "gradient_estimation" if "gradient_estimation" in case_id else "euler"
    recipe = Recipe(sigmas=case.inputs["sigmas"], sampler=SAMPLERS[name], guidance=plan)
    noisy = start(given, AV(case.inputs["video_noise"], case.inputs["audio_noise"]))
    result = denoise(denoiser, given, noisy, recipe, draw=lambda like, purpose: like)
    video = unpatchify_video(given.video.result(result.video), grid.latent_shape, 1)
    case.check("video_latent", video)
    channels = case.params["audio_latent"][1]
    case.check("audio_latent", unpatchify_audio(given.audio.result(result.audio), channels))
