"""Latents of both streams to picture and sound."""

import time

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.progress import OnProgress, Progress
from soundstage.core.types import AudioLatents, LogMel, VideoLatents
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.tiling import decode_tiled
from soundstage.models.vocoder.model import Vocoder
from soundstage.runtime.precision import full_float32


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
    vae: VideoVAE, latents: VideoLatents, on_progress: OnProgress | None = None
) -> Float[Tensor, "3 frames height width"]:
    """Decode one clip, in tiles if it is large, to float32 pixels on the CPU; about [-1, 1], not clamped."""
    progress = StageProgress(on_progress)
    num_frames = vae.geometry.num_pixel_frames(latents.shape[2])
    progress("decode_video", 0, num_frames)
    done: list[Tensor] = []
    for pixels in decode_tiled(vae, latents[:1].to(_dtype(vae))):
        done.append(pixels[0].float().cpu())
        progress("decode_video", sum(part.shape[1] for part in done), num_frames)
    return torch.cat(done, dim=1)


@torch.no_grad()
@full_float32()
def decode_audio(
    vae: AudioVAE, vocoder: Vocoder, latents: AudioLatents, on_progress: OnProgress | None = None
) -> Float[Tensor, "ch samples"]:
    """Decode one sound to a float32 waveform on the CPU."""
    progress = StageProgress(on_progress)
    progress("decode_audio", 0, 2)
    mel: LogMel = vae.decode(latents[:1].to(_dtype(vae)))
    progress("decode_audio", 1, 2)
    waveform: Tensor = vocoder(mel.to(_dtype(vocoder)))
    progress("decode_audio", 2, 2)
    return waveform[0].float().cpu()


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
