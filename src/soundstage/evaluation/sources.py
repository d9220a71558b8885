"""Where the clips to measure come from; every source writes MP4 files, because only files are measured."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.errors import RequestError
from soundstage.data.world.sample import World, WorldConfig
from soundstage.dsp.mel import log_mel
from soundstage.dsp.resample import resample
from soundstage.evaluation.cases import Case
from soundstage.media.mux import write_clip
from soundstage.models.transformer.inputs import Passes
from soundstage.pipelines.decode import decode_audio, decode_video
from soundstage.pipelines.generation import fit_sound
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.request import GenerationRequest

TAIL = 0.25  # s of sound past the end, for shifts
VIDEO_DECIDES = ("width", "height", "num_frames", "duration", "frame_rate")  # fields of a request

StereoSound = Float[Tensor, "2 samples"]
ClipPixels = Float[Tensor, "3 frames height width"]


def write_world(case: Case, path: Path, *, config: WorldConfig, shift: float = 0.0) -> None:
    """Render the world's own clip.

    Args:
        shift: Seconds by which the sound comes too late.
    """
    pixels, sound = render(case, config)
    _write(path, pixels, shifted(sound, shift, config), config, case)


def write_reconstruction(case: Case, path: Path, *, config: WorldConfig, pipeline: Pipeline) -> None:
    """Pass the world's own clip through both VAEs and the vocoder: the best that the model could reach."""
    pixels, sound = render(case, config)
    device = pipeline.components.device
    with torch.no_grad():
        dtype = next(pipeline.video_vae.parameters()).dtype
        video = pipeline.video_vae.encode(pixels[None].to(device, dtype))
        mel_config = pipeline.audio_vae.config.mel
        mel = log_mel(resample(sound[None], config.sample_rate, mel_config.sample_rate), mel_config)
        audio = pipeline.audio_vae.encode(mel.to(device))
    pixels = decode_video(pipeline.video_vae, video, budget=pipeline.components.decode_budget).clamp(-1, 1)
    num_samples = round(config.duration * config.sample_rate)
    sound = fit_sound(
        decode_audio(pipeline.audio_vae, pipeline.vocoder, audio), num_samples, config.sample_rate
    )
    _write(path, pixels, sound.clamp(-1, 1), config, case)


def write_generated(
    cases: Sequence[Case], paths: Sequence[Path], *, pipeline: Pipeline, fields: Mapping[str, Any]
) -> None:
    """Generate clips from captions alone; several are made in one batch."""
    requests = [_request(case, fields) for case in cases]
    made = [pipeline(requests[0])] if len(requests) == 1 else pipeline.together(requests)
    for clip, path in zip(made, paths, strict=True):
        clip.save(path)


def write_dubbed(
    case: Case, path: Path, *, pipeline: Pipeline, fields: Mapping[str, Any], files: Mapping[str, Path]
) -> None:
    """Generate sound for the picture of the world's own clip, which is a file."""
    rest = {name: value for name, value in fields.items() if name not in VIDEO_DECIDES}
    pipeline(_request(case, {**rest, "video": files[case.name]})).save(path)


def write_pictured(
    case: Case, path: Path, *, pipeline: Pipeline, fields: Mapping[str, Any], files: Mapping[str, Path]
) -> None:
    """Generate a picture for the sound of the world's own clip, which is a file."""
    pipeline(_request(case, {**fields, "audio": files[case.name]})).save(path)


def _request(case: Case, fields: Mapping[str, Any]) -> GenerationRequest:
    return GenerationRequest.of({"prompt": case.caption, "seed": case.seed, **fields})


@contextmanager
def cross_attention_off(transformer: nn.Module) -> Iterator[None]:
    """Let picture and sound be made side by side without knowing of each other."""

    def isolate(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        passes: Passes = kwargs["passes"]
        branches = tuple(
            replace(branch, perturbation=replace(branch.perturbation, skip_a2v="all", skip_v2a="all"))
            for branch in passes.branches
        )
        return args, {**kwargs, "passes": replace(passes, branches=branches)}

    handle = transformer.register_forward_pre_hook(isolate, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def world_config(pipeline: Pipeline | None, fields: Mapping[str, Any]) -> WorldConfig:
    """Choose the size and rates of what a model generates; without a model, those of the training clips."""
    if pipeline is None:
        return WorldConfig(tail=TAIL)
    canvas = pipeline.plan(GenerationRequest.of({"prompt": "a red ball", **fields})).canvas
    return WorldConfig(
        num_frames=canvas.num_frames,
        height=canvas.height,
        width=canvas.width,
        frame_rate=canvas.frame_rate,
        sample_rate=pipeline.vocoder.sample_rate,
        tail=TAIL,
    )


def has_encoders(pipeline: Pipeline) -> bool:
    """Whether a model can take clips in, not only make them."""
    return pipeline.video_vae.encoder is not None and pipeline.audio_vae.encoder is not None


def render(case: Case, config: WorldConfig) -> tuple[ClipPixels, StereoSound]:
    """Render a case's scene; the sound goes on past the end of the picture."""
    if case.scene is None:
        raise RequestError(f"clip {case.name} has no scene to render")
    world = World(config)
    return world.pixels([case.scene])[0], world.waveform([case.scene])[0]


def shifted(sound: StereoSound, seconds: float, config: WorldConfig) -> Float[Tensor, "2 shifted"]:
    """Delay a sound by silence at its start, or bring it forward by cutting; as long as the clip."""
    count = round(seconds * config.sample_rate)
    if count < 0:
        sound = sound[:, -count:]
    elif count:
        sound = torch.nn.functional.pad(sound, (count, 0))
    return sound[:, : round(config.duration * config.sample_rate)]


def _write(path: Path, pixels: ClipPixels, sound: Tensor, config: WorldConfig, case: Case) -> None:
    write_clip(
        path,
        pixels,
        sound,
        frame_rate=config.frame_rate,
        sample_rate=config.sample_rate,
        metadata={"caption": case.caption, "seed": case.seed},
    )
