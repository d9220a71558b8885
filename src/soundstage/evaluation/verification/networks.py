"""Recorded calls of single networks, through the classes and the loader that generation uses."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.diffusion.flow import to_denoised
from soundstage.dsp.mel import log_mel
from soundstage.evaluation.verification.bench import Bench, Case, given
from soundstage.media.video import to_frames
from soundstage.models.transformer.inputs import Blocks, Perturbation, StreamInput

Outputs = Mapping[str, Tensor]

AV_MODULATION = "own_scale_shift_other_gate"
SKIPS = {
    "skip_video_self_attn": "skip_video_self_attention",
    "skip_audio_self_attn": "skip_audio_self_attention",
    "skip_a2v_cross_attn": "skip_a2v",
    "skip_v2a_cross_attn": "skip_v2a",
}


def transformer(bench: Bench, case: Case) -> Outputs:
    """One forward pass: velocities, and what they say the clean latents are."""
    case.check_param("av_modulation", AV_MODULATION)
    network = given(bench.components(case, "transformer").transformer, "transformer")
    inputs = bench.inputs(case)
    streams = {name: _stream(case, inputs, name) for name in ("video", "audio")}
    velocities = network(streams["video"], streams["audio"], _perturbations(case.params))
    outputs = {}
    for name, stream in streams.items():
        velocity = getattr(velocities, name)
        if stream is not None and velocity is not None:
            outputs[f"{name}_velocity"] = velocity
            outputs[f"{name}_denoised"] = to_denoised(stream.latents, velocity, stream.timesteps)
    return outputs


def connectors(bench: Bench, case: Case) -> Outputs:
    """Hidden states of the text encoder to the contexts of both streams."""
    network = given(bench.components(case, "connectors").connectors, "text connectors")
    case.check_param("registers", network.config.num_registers)
    inputs = bench.inputs(case)
    states, mask = inputs["hidden_states"], inputs["attention_mask"]
    features = network.text_embedding_projection(states, mask)
    contexts = network(states, mask)
    everywhere = torch.ones(contexts.video.shape[:2], dtype=torch.int64)  # contexts have no padding
    return {
        "video_features": features.video,
        "audio_features": features.audio,
        "video_encoding": contexts.video,
        "audio_encoding": contexts.audio,
        "mask": everywhere,
    }


def video_vae(bench: Bench, case: Case) -> Outputs:
    """Pixels to normalised latents, or back."""
    vae = given(bench.components(case, "video_vae").video_vae, "video VAE")
    inputs = bench.inputs(case)
    if "latent" in inputs:
        pixels = vae.decode(inputs["latent"].to(bench.dtype)).float()
        return {"video": pixels, "frames_u8": to_frames(pixels[0])}
    pixels = inputs["video_u8"].float() / 127.5 - 1 if "video_u8" in inputs else inputs["video"]
    step = vae.geometry.temporal_factor
    whole = (pixels.shape[2] - 1) // step * step + 1  # trailing frames that fill no latent frame are dropped
    return {"latent": vae.encode(pixels[:, :, :whole].to(bench.dtype)).float()}


def audio_vae(bench: Bench, case: Case) -> Outputs:
    """Waveform or log-mel to normalised latents, or latents to log-mel."""
    vae = given(bench.components(case, "audio_vae").audio_vae, "audio VAE")
    inputs = bench.inputs(case)
    if "latent" in inputs:
        return {"mel": vae.decode(inputs["latent"])}
    if "mel" in inputs:
        return {"latent": vae.encode(inputs["mel"])}
    case.check_param("sampling_rate", vae.config.mel.sample_rate)
    return {"latent": vae.encode(log_mel(inputs["waveform"], vae.config.mel))}


def vocoder(bench: Bench, case: Case) -> Outputs:
    """Log-mel to waveform."""
    network = given(bench.components(case, "vocoder").vocoder, "vocoder")
    case.check_param("output_sampling_rate", network.sample_rate)
    return {"waveform": network(bench.inputs(case)["mel"])}


def upsampler(bench: Bench, case: Case) -> Outputs:
    """The bare network, and the whole step between two stages."""
    network = bench.upsampler(case)
    latents = bench.inputs(case)["latent"].to(bench.dtype)
    outputs = {"network": network(latents).float()}
    name = bench.statistics_of(case.spec)
    if name is not None:
        statistics = given(
            bench.components_of(name, "video_vae").video_vae, "video VAE"
        ).per_channel_statistics
        enlarged = network(statistics.denormalise(latents))
        outputs["latent"] = statistics.normalise(enlarged).float()
    return outputs


def _stream(case: Case, inputs: Mapping[str, Tensor], name: str) -> StreamInput | None:
    if f"{name}_latent" not in inputs:
        return None
    return StreamInput(
        latents=inputs[f"{name}_latent"],
        timesteps=inputs[f"{name}_timesteps"],
        sigma=inputs[f"{name}_sigma"],
        positions=inputs[f"{name}_positions"],
        context=inputs[f"{name}_context"],
        context_mask=inputs.get(f"{name}_context_mask", inputs.get("context_mask")),
        attention_weights=inputs.get(f"{name}_attention_mask"),
        keyframe_mask=inputs.get(f"{name}_keyframe_mask", inputs.get("keyframe_mask")),
        enabled=case.params.get("enabled", {}).get(name, True),
    )


def _perturbations(params: Mapping[str, Any]) -> list[Perturbation] | None:
    items = params.get("perturbations")
    return None if items is None else [_perturbation(item) for item in items]


def _perturbation(item: Mapping[str, Any]) -> Perturbation:
    unknown = item.keys() - SKIPS.keys()
    if unknown:
        raise RequestError(f"unknown perturbation {sorted(unknown)[0]!r}; known are {', '.join(SKIPS)}")
    blocks: dict[str, Blocks] = {
        SKIPS[name]: "all" if value == "all" else frozenset(value) for name, value in item.items()
    }
    return Perturbation(**blocks)
