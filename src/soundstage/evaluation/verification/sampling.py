"""Recorded cases of conditioning and of whole runs: text to contexts, noise to latents, latents to clips."""

from collections.abc import Mapping

import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import VideoGeometry
from soundstage.core.types import AV
from soundstage.diffusion.denoise import Recipe, denoise, start
from soundstage.diffusion.flow import starting_point
from soundstage.diffusion.guidance import GuidancePlan
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.evaluation.verification.bench import Bench, Case, given
from soundstage.evaluation.verification.maths import stream_guidance
from soundstage.evaluation.verification.networks import AV_MODULATION
from soundstage.media.video import to_frames
from soundstage.models.transformer.patchify import unpatchify_audio, unpatchify_video
from soundstage.pipelines.conditions import (
    StreamState,
    VideoGrid,
    append_keyframe,
    append_reference,
    empty_audio,
    empty_video,
    replace_frames,
    start_from,
)
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.text_conditioning import Contexts

Outputs = Mapping[str, Tensor]

# Words of a case's id or description, and the sampler they mean; the first hit counts.
SAMPLER_WORDS = (
    ("gradient", "gradient_estimation"),
    ("ancestral", "euler_ancestral"),
    ("res2s", "res_2s"),
    ("res_2s", "res_2s"),
    ("second-order", "res_2s"),
    ("euler", "euler"),
)


def conditioning(bench: Bench, case: Case) -> Outputs:
    """What conditions make of a stream's state, and how noise is added to it."""
    params, inputs = case.params, bench.inputs(case)
    if "noise" in inputs:
        return {
            "noised": starting_point(
                inputs["latent"],
                inputs["clean_latent"],
                inputs["denoise_mask"],
                inputs["noise"],
                params["noise_scale"],
            )
        }
    inputs = dict(case.inputs)  # states are made on the CPU
    initial = inputs["initial_latent"]
    grid = VideoGrid(
        geometry=VideoGeometry(channels=initial.shape[1]),
        num_latent_frames=params["latent_frames"],
        rows=params["latent_height"],
        columns=params["latent_width"],
        frame_rate=params["fps"],
    )
    state = start_from(empty_video(grid, initial.shape[0]), grid.tokens(initial))
    if "latent" in inputs:
        state = replace_frames(
            state, grid, inputs["latent"], index=params["latent_idx"], strength=params["strength"]
        )
    if "keyframe" in inputs:
        state = append_keyframe(
            state,
            grid,
            inputs["keyframe"],
            frame=params["frame_idx"],
            num_frames=params["num_pixel_frames"],
            strength=params["strength"],
        )
    if "reference" in inputs:
        state = append_reference(
            state,
            grid,
            inputs["reference"],
            strength=params["reference_strength"],
            downscale_factor=params.get("downscale_factor", 1),
            temporal_factor=params.get("temporal_factor", 1),
            attention_strength=params.get("attention_strength"),
        )
    return {
        "latent": state.latents,
        "clean_latent": state.clean,
        "denoise_mask": state.denoise_mask,
        "positions": state.positions,
        "attention_mask": _attention_mask(state),
    }


def e2e(bench: Bench, case: Case) -> Outputs:
    """One stretch of a whole run, told by what is given."""
    if "hidden_states" in case.inputs:
        return _encode(bench, case)
    if "sigmas" in case.inputs:
        return _sample(bench, case)
    if "video_latent" in case.inputs or "audio_latent" in case.inputs:
        return _decode(bench, case)
    raise RequestError(f"no stretch of a run begins with {', '.join(case.inputs)}")


def _encode(bench: Bench, case: Case) -> Outputs:
    network = given(bench.components(case, "connectors").connectors, "text connectors")
    inputs = bench.inputs(case)
    outputs: dict[str, Tensor] = {}
    for suffix in ("", "_negative"):
        if f"hidden_states{suffix}" in inputs:
            contexts = network(inputs[f"hidden_states{suffix}"], inputs[f"attention_mask{suffix}"])
            outputs |= {
                f"video_context{suffix}": contexts.video,
                f"audio_context{suffix}": contexts.audio,
            }
    return outputs


def _decode(bench: Bench, case: Case) -> Outputs:
    inputs = bench.inputs(case)
    outputs: dict[str, Tensor] = {}
    if "video_latent" in inputs:
        vae = given(bench.components(case, "video_vae").video_vae, "video VAE")
        outputs["frames_u8"] = to_frames(vae.decode(inputs["video_latent"].to(bench.dtype)).float()[0])
    if "audio_latent" in inputs:
        vae = given(bench.components(case, "audio_vae").audio_vae, "audio VAE")
        vocoder = given(bench.components(case, "vocoder").vocoder, "vocoder")
        case.check_param("sampling_rate", vocoder.sample_rate)
        outputs["mel"] = vae.decode(inputs["audio_latent"])
        outputs["waveform"] = vocoder(outputs["mel"])[0]
    return outputs


def _sample(bench: Bench, case: Case) -> Outputs:
    """Run the sampler from the recorded noise, as the pipeline does from noise of its own."""
    case.check_param("av_modulation", AV_MODULATION)
    components = bench.components(case, "transformer")
    inputs = bench.inputs(case)
    grid, video = _video(case, inputs, components.video_geometry)
    audio = None
    if "audio_noise" in inputs:
        batch, num_tokens, _ = inputs["audio_noise"].shape
        audio = empty_audio(components.audio_geometry, num_tokens, batch)
    streams = AV(video, audio).map(lambda state: state.to(bench.device))
    scales = case.params.get("guidance", {})
    plan = GuidancePlan(
        streams=AV(stream_guidance(scales.get("video", {})), stream_guidance(scales.get("audio", {})))
    )
    contexts = Contexts(
        prompt=AV(inputs.get("video_context"), inputs.get("audio_context")),
        negative=AV(inputs.get("video_context_negative"), inputs.get("audio_context_negative")),
    )
    network = given(components.transformer, "transformer")
    recipe = Recipe(sigmas=inputs["sigmas"].cpu(), sampler=SAMPLERS[_sampler(case)], guidance=plan)
    noisy = start(streams, AV(inputs.get("video_noise"), inputs.get("audio_noise")))
    denoiser = TransformerDenoiser(network, streams, contexts, plan)
    result = denoise(denoiser, streams, noisy, recipe, draw=_no_noise)
    outputs = {}
    if grid is not None and video is not None and result.video is not None:
        size = grid.geometry.patch_size
        outputs["video_latent"] = unpatchify_video(video.result(result.video), grid.latent_shape, size)
    if result.audio is not None:
        outputs["audio_latent"] = unpatchify_audio(result.audio, components.audio_geometry.channels)
    return outputs


def _video(
    case: Case, inputs: Mapping[str, Tensor], geometry: VideoGeometry
) -> tuple[VideoGrid | None, StreamState | None]:
    if "video_noise" not in inputs:
        return None, None
    params = case.params
    grid = VideoGrid.of(geometry, params["frames"], params["height"], params["width"], params["fps"])
    state = empty_video(grid, inputs["video_noise"].shape[0])
    if "first_frame_latent" in case.inputs:
        first, strength = case.inputs["first_frame_latent"], params["first_frame_strength"]
        state = replace_frames(state, grid, first, strength=strength)
    return grid, state


def _sampler(case: Case) -> str:
    """Tell the sampler by the parameter of that name, or by what the case calls itself."""
    if "sampler" in case.params:
        return str(case.params["sampler"])
    words = f"{case.id.rsplit('.', 1)[-1]} {case.spec.get('call', '')}".lower()
    return next((name for word, name in SAMPLER_WORDS if word in words), "euler")


def _attention_mask(state: StreamState) -> Tensor:
    weights = state.attention_weights
    count = state.clean.shape[1]
    return torch.ones(1, count, count) if weights is None else weights.weights()


def _no_noise(_: AV[Tensor], purpose: str) -> AV[Tensor]:
    raise RequestError(f"the sampler wants noise ({purpose}), and the case records none")
