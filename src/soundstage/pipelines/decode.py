"""Latents of both streams to picture and sound, the picture part after part."""

import time
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.progress import OnProgress, Progress
from soundstage.core.types import AudioLatents, LogMel, VideoLatents
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.video_vae.decode_plan import (
    ENOUGH_FOR_CPU,
    ENOUGH_FOR_GPU,
    DecodePlan,
    plan_decoding,
)
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.tiling import decode_streamed
from soundstage.models.vocoder.model import Vocoder
from soundstage.runtime.layout import lay_out
from soundstage.runtime.precision import full_float32
from soundstage.runtime.rates import available_memory
from soundstage.runtime.residency import bring, in_use

CPU_SHARE, GPU_SHARE = 0.5, 0.8  # of the memory that is free


class StageProgress:
    """Tells of one stage of the work after another, each with its own clock."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.on_progress = on_progress
        self._began = time.monotonic()

    def __call__(self, stage: str, step: int, num_steps: int) -> None:
        """Tell that `step` steps are done; 0 starts the stage's clock."""
        if step == 0:
            self._began = time.monotonic()
        if self.on_progress is not None:
            seconds = time.monotonic() - self._began
            self.on_progress(Progress(stage=stage, step=step, num_steps=num_steps, seconds=seconds))


@torch.no_grad()
def decode_video(
    vae: VideoVAE,
    latents: VideoLatents,
    on_progress: OnProgress | None = None,
    *,
    budget: int | None = None,
) -> Float[Tensor, "3 frames height width"]:
    """Decode one clip to float32 pixels on the CPU; about [-1, 1], not clamped. See `stream_video`."""
    return torch.cat(list(stream_video(vae, latents, on_progress, budget=budget)), dim=1)


@torch.no_grad()
def stream_video(
    vae: VideoVAE,
    latents: VideoLatents,
    on_progress: OnProgress | None = None,
    *,
    budget: int | None = None,
) -> Iterator[Float[Tensor, "3 part height width"]]:
    """Decode one clip part after part; together they are what `decode_video` gives.

    Args:
        budget: Bytes that decoding may take beside the weights and what it yields; by default half of what is
            free on a CPU and four fifths on a GPU. It decides how much is decoded at once, up to the chunk
            from which on longer ones are not faster.

    Raises:
        ResourceError: The budget is too small for any part of the picture.
    """
    bring(vae)
    progress = StageProgress(on_progress)
    num_frames = vae.geometry.num_pixel_frames(latents.shape[2])
    progress("decode_video", 0, num_frames)
    done = 0
    given = latents[:1].to(_device(vae), _dtype(vae))
    for pixels in _in_turn(vae, decode_streamed(vae, given, plan_video(vae, latents, budget))):
        part = pixels[0].float().cpu()
        del pixels
        done += part.shape[1]
        progress("decode_video", done, num_frames)
        yield part
        del part


def _in_turn(vae: VideoVAE, parts: Iterator[Tensor]) -> Iterator[Tensor]:
    """Make each part on the device and in full float32; between them the VAE may leave."""
    while True:
        with in_use(vae), full_float32():
            lay_out(vae, _device(vae))
            part = next(parts, None)
        if part is None:
            return
        yield part
        del part


def plan_video(vae: VideoVAE, latents: VideoLatents, budget: int | None = None) -> DecodePlan:
    """Decide how much of a clip is decoded at once; see `stream_video`."""
    frames, rows, columns = latents.shape[2:]
    device = _device(vae)
    return plan_decoding(
        vae.config,
        (frames, rows, columns),
        itemsize=_dtype(vae).itemsize,
        budget=decode_budget(device) if budget is None else budget,
        enough=ENOUGH_FOR_CPU if device.type == "cpu" else ENOUGH_FOR_GPU,
    )


def decode_budget(device: torch.device) -> int:
    """Return the bytes that decoding may take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(GPU_SHARE * (free + unused))
    return int(CPU_SHARE * available_memory())


@torch.no_grad()
@full_float32()
def decode_audio(
    vae: AudioVAE, vocoder: Vocoder, latents: AudioLatents, on_progress: OnProgress | None = None
) -> Float[Tensor, "ch samples"]:
    """Decode one sound to a float32 waveform on the CPU."""
    progress = StageProgress(on_progress)
    progress("decode_audio", 0, 2)
    bring(vae)
    mel: LogMel = vae.decode(latents[:1].to(_dtype(vae)))
    progress("decode_audio", 1, 2)
    waveform: Tensor = vocoder(mel.to(_dtype(vocoder)))
    progress("decode_audio", 2, 2)
    return waveform[0].float().cpu()


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
