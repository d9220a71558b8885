"""Recorded cases without a network: positions, rotary tables, schedules, sampler steps, guidance, log-mel."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.diffusion import samplers, schedules
from soundstage.diffusion.guidance import (
    GUIDANCE,
    BinnedGuidance,
    ClassifierFreeGuidance,
    CrossModalGuidance,
    Pass,
    SpatioTemporalGuidance,
    StreamGuidance,
    Term,
)
from soundstage.dsp.mel import MelConfig, log_mel
from soundstage.dsp.resample import resample
from soundstage.evaluation.verification.bench import Bench, Case
from soundstage.models.transformer.patchify import (
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
)
from soundstage.models.transformer.positions import audio_positions, video_positions
from soundstage.nn.rope import Rope, apply_rope, rope_table

Outputs = Mapping[str, Tensor]


def positions(bench: Bench, case: Case) -> Outputs:
    """Token positions, the way from latents to tokens, and from pixels to latent sizes."""
    params, inputs = case.params, bench.inputs(case)
    if "pixel_shapes" in inputs:
        return {"latent_shapes": _latent_shapes(inputs["pixel_shapes"])}
    if "video_latent" in inputs or "audio_latent" in inputs:
        return _tokens(inputs, params)
    if "audio_latent_frames" in params:
        case.check_param("causal", True)
        audio = AudioGeometry(
            sample_rate=params["sampling_rate"],
            hop_length=params["mel_hop_length"],
            downsample_factor=params["latent_downsample"],
        )
        return {"positions": audio_positions(audio, params["audio_latent_frames"])}
    case.check_param("causal_fix", True)
    video = VideoGeometry(temporal_factor=params["time_scale"], spatial_factor=params["space_scale"])
    size = (params["latent_frames"], params["latent_height"], params["latent_width"])
    return {"positions": video_positions(video, *size, params["fps"])}


def rope(bench: Bench, case: Case) -> Outputs:
    """Rotary tables for every use, and their application."""
    params, inputs = case.params, bench.inputs(case)
    if "x" in inputs:
        return {"y": apply_rope(inputs["x"], Rope(inputs["cos"], inputs["sin"]))}
    case.check_param("use_middle_indices_grid", True)
    tables: dict[str, Tensor] = {}
    for use, dim in params["dims"].items():
        table = rope_table(
            inputs[f"{use}_positions"].mean(-1),
            params["max_pos"][use],
            dim,
            params["heads"],
            params["theta"],
            params["rope_type"],
            params["frequencies_precision"],
        )
        tables |= {f"{use}_cos": table.cos, f"{use}_sin": table.sin}
    return tables


def scheduler(bench: Bench, case: Case) -> Outputs:
    """Noise schedules, single sampler steps and sampler coefficients."""
    inputs = bench.inputs(case)
    if "h" in inputs:
        rows = [samplers.res_2s_coefficients(h) for h in inputs["h"].tolist()]
        return {"coefficients": torch.tensor(rows, dtype=torch.float64)}
    if "sample" in inputs:
        return {"next": _step(case, inputs)}
    if "stage_1" in case.outputs:
        return {"stage_1": schedules.distilled(), "stage_2": schedules.refine()}
    make = _schedule(case)
    return {f"sigmas_{steps}": make(steps) for steps in case.params["steps"]}


def guidance(bench: Bench, case: Case) -> Outputs:
    """How predictions combine, which steps are skipped, which bin applies."""
    params, inputs = case.params, bench.inputs(case)
    if "skipped" in case.outputs:
        rows, steps = case.outputs["skipped"].shape
        skips = [[StreamGuidance(skip_step=row).skips(step) for step in range(steps)] for row in range(rows)]
        return {"skipped": torch.tensor(skips)}
    if "upper_bounds" in inputs:
        return {"cfg_scale": _binned_scales(inputs)}
    if "kind" in params:
        return {"delta": _term(params).delta(inputs["cond"], _other(inputs))}
    combine = stream_guidance({**params, "stg_blocks": (0,)}).combine
    names: tuple[Pass, ...] = ("cond", "uncond", "perturbed", "isolated")
    passes: dict[Pass, Tensor] = {name: inputs[name] for name in names if name in inputs}
    return {
        "pred": combine(passes),
        "pred_single": combine({name: tensor[:1] for name, tensor in passes.items()}),
    }


def mel(bench: Bench, case: Case) -> Outputs:
    """Waveform, resampled if need be, to log-mel."""
    params, waveform = case.params, bench.inputs(case)["waveform"]
    for name, allowed in (("mel_scale", "slaney"), ("norm", "slaney"), ("power", 1.0), ("center", True)):
        case.check_param(name, allowed)
    case.check_param("pad_mode", "reflect")
    config = MelConfig(
        sample_rate=params["sampling_rate"],
        n_fft=params["n_fft"],
        win_length=params["win_length"],
        hop_length=params["hop_length"],
        num_mels=params["n_mels"],
        f_min=params["f_min"],
        f_max=params["f_max"],
        log_floor=params["log_floor"],
    )
    if "input_sampling_rate" in params:
        waveform = resample(waveform, params["input_sampling_rate"], config.sample_rate)
    return {"resampled": waveform, "mel": log_mel(waveform, config)}


def stream_guidance(params: Mapping[str, Any]) -> StreamGuidance:
    """Build one stream's guidance from a case's scales; deviations over the whole tensor, as recorded."""
    return StreamGuidance(
        terms=(
            ClassifierFreeGuidance(scale=params.get("cfg_scale", 1.0)),
            SpatioTemporalGuidance(
                scale=params.get("stg_scale", 0.0), blocks=tuple(params.get("stg_blocks", ()))
            ),
            CrossModalGuidance(scale=params.get("modality_scale", 1.0)),
        ),
        rescale=params.get("rescale_scale", 0.0),
        rescale_over="all",
        skip_step=params.get("skip_step", 0),
    )


def _tokens(inputs: Mapping[str, Tensor], params: Mapping[str, Any]) -> Outputs:
    """Cut latents into tokens, and check on the way that the way back leads home."""
    tokens = {}
    if "video_latent" in inputs:
        latents, patch = inputs["video_latent"], params.get("patch_size", 1)
        tokens["video_tokens"] = patchify_video(latents, patch)
        frames, height, width = latents.shape[2:]
        _check_return(unpatchify_video(tokens["video_tokens"], (frames, height, width), patch), latents)
    if "audio_latent" in inputs:
        latents = inputs["audio_latent"]
        tokens["audio_tokens"] = patchify_audio(latents)
        _check_return(unpatchify_audio(tokens["audio_tokens"], latents.shape[1]), latents)
    return tokens


def _check_return(returned: Tensor, latents: Tensor) -> None:
    if not torch.equal(returned, latents):
        raise RequestError("tokens do not lead back to the latents they were made of")


def _latent_shapes(pixel_shapes: Tensor) -> Tensor:
    video, audio = VideoGeometry(), AudioGeometry()
    shapes = []
    for frames, height, width, rate in pixel_shapes.tolist():
        whole = (int(frames) - 1) // video.temporal_factor * video.temporal_factor + 1  # the rest is cropped
        rows, columns = (int(size) // video.token_size * video.token_size for size in (height, width))
        shape = video.latent_shape(whole, rows, columns)
        shapes.append([*shape, audio.num_tokens(int(frames), rate)])
    return torch.tensor(shapes)


def _schedule(case: Case) -> Callable[[int], Tensor]:
    params = case.params
    if "tokens" in params:
        case.check_param("base_shift", 0.95)
        case.check_param("max_shift", 2.05)
        shift = schedules.shift_for_tokens(params["tokens"])
        terminal = params.get("terminal", schedules.TERMINAL) if params.get("stretch", True) else None
        return lambda steps: schedules.shifted(steps, shift=shift, terminal=terminal)
    if "threshold_noise" in params:
        return lambda steps: schedules.linear_quadratic(steps, threshold=params["threshold_noise"])
    if "alpha" in params:
        case.check_param("beta", params["alpha"])
        resolution = params["timesteps_length"]
        return lambda steps: schedules.beta(
            steps, alpha=params["alpha"], shift=params["shift"], resolution=resolution
        )
    raise RequestError(f"no schedule has the parameters {', '.join(params)}")


def _step(case: Case, inputs: Mapping[str, Tensor]) -> Tensor:
    index = case.params["step_index"]
    sigma, sigma_next = inputs["sigmas"].tolist()[index : index + 2]
    if "noise" not in inputs:
        return samplers.euler_step(inputs["sample"], inputs["denoised"], sigma=sigma, sigma_next=sigma_next)
    if "res2s" in case.id:
        sample, denoised, noise = (inputs[name].double() for name in ("sample", "denoised", "noise"))
        eta = case.params.get("eta", 0.5)
        return samplers.sde_step(sample, denoised, noise, sigma=sigma, sigma_next=sigma_next, eta=eta)
    if "ancestral" in case.id:
        return samplers.ancestral_step(
            inputs["sample"],
            inputs["denoised"],
            inputs["noise"],
            sigma=sigma,
            sigma_next=sigma_next,
            eta=case.params.get("eta", 1.0),
        )
    raise RequestError("no sampler has a step of that name")


def _binned_scales(inputs: Mapping[str, Tensor]) -> Tensor:
    bounds, scales = inputs["upper_bounds"].tolist(), inputs["bin_cfg_scale"].tolist()
    # Bounds are written by people: 0.8, not the float32 nearest to it, with which sigmas are compared.
    bins = tuple(
        (float(f"{bound:.7g}"), StreamGuidance(terms=(ClassifierFreeGuidance(scale=scale),)))
        for bound, scale in zip(bounds, scales, strict=True)
    )
    chosen = [BinnedGuidance(bins=bins).at(sigma).terms[0] for sigma in inputs["sigma"].tolist()]
    return torch.tensor([term.scale for term in chosen if isinstance(term, ClassifierFreeGuidance)])


def _term(params: Mapping[str, Any]) -> Term:
    kind, scale = params["kind"], params["scale"]
    if kind == "stg":
        return SpatioTemporalGuidance(scale=scale, blocks=(0,))
    if kind in ("modality", "isolated"):
        return CrossModalGuidance(scale=scale)
    if kind.startswith("apg"):
        details = {name: params[name] for name in ("eta", "norm_threshold") if name in params}
        return GUIDANCE["apg"](scale=scale, **details)
    if kind in GUIDANCE:
        return GUIDANCE[kind](scale=scale)
    raise RequestError(f"unknown guidance {kind!r}; known are {', '.join(GUIDANCE)}, stg, modality")


def _other(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what the conditional prediction is compared with: whatever the case calls it."""
    others = [tensor for name, tensor in inputs.items() if name != "cond"]
    if len(others) != 1:
        raise RequestError(f"{len(others)} predictions are given beside cond; one is needed")
    return others[0]
