"""From the latents of one stage to those of a larger one.

| `upsampler` | how | needs |
|---|---|---|
| a file or a release | the trained network, on un-normalised latents | the file |
| `pixels` | decode, enlarge the pictures bicubically, encode | nothing, and time |
| `bicubic` | enlarge the latents bicubically | nothing |

Nothing here is chosen silently: without `upsampler`, the one that was released for the model is looked for,
and if it is not on this machine, that is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.generation import Generation
from soundstage.checkpoints.keymap import UPSAMPLER
from soundstage.checkpoints.releases import RELEASES, find_release, missing_message, resolve
from soundstage.core.errors import CheckpointError, RequestError
from soundstage.core.types import VideoLatents
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.tiling import encode_tiled
from soundstage.pipelines.decode import decode_video
from soundstage.runtime.residency import in_use

Enlarged = Float[Tensor, "b c f h2 w2"]
TrainFree = Callable[[VideoVAE, VideoLatents, int, int | None], Enlarged]

TRAIN_FREE_SCALE = 2


@dataclass(frozen=True, kw_only=True)
class UpsamplerChoice:
    """What enlarges between stages, before anything of it is loaded."""

    name: str  # a key of TRAIN_FREE, or a file
    scale: Fraction
    note: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether it is a network from a file."""
        return self.name not in TRAIN_FREE


def choose_upsampler(given: str | None, generation: Generation, channels: int) -> UpsamplerChoice:
    """Settle what enlarges; of a file, only the header is read.

    Args:
        given: A file, a release, or a way without training; None looks for what was released for the model.
        channels: Of the model's video latents.

    Raises:
        CheckpointError: It is not there, or is something else.
        RequestError: It does not make pictures larger.
    """
    if given in TRAIN_FREE:
        note = f"enlarged with upsampler '{given}', without a network trained for it: less detail to refine"
        return UpsamplerChoice(name=given, scale=Fraction(TRAIN_FREE_SCALE), note=note)
    path = _released(generation) if given is None else given
    checkpoint = open_checkpoint(resolve(path))
    checkpoint.part(UPSAMPLER)
    config = LatentUpsamplerConfig.from_header(checkpoint.config)
    if config.temporal_upsample or config.scale <= 1:
        raise RequestError(
            f"upsampler {path} does not make pictures larger; the second stage needs one named 'spatial'"
        )
    if config.in_channels != channels:
        raise CheckpointError(
            f"upsampler {path} takes latents of {config.in_channels} channels, this model's have {channels}; "
            "they are of different models"
        )
    return UpsamplerChoice(name=str(path), scale=config.scale)


@torch.no_grad()
def upsample(network: LatentUpsampler, vae: VideoVAE, latents: VideoLatents) -> Enlarged:
    """Run a trained upsampler between the VAE's normalisations; float32 in, float32 out.

    Raises:
        ResourceError: The two do not fit on the device together.
    """
    with in_use(network, vae):
        statistics = vae.per_channel_statistics
        raw = network(statistics.denormalise(latents.float()))
        enlarged: Tensor = statistics.normalise(raw.float())
    return enlarged


@torch.no_grad()
def enlarge_latents(
    vae: VideoVAE,  # noqa: ARG001  a TrainFree
    latents: VideoLatents,
    scale: int,
    budget: int | None = None,  # noqa: ARG001  a TrainFree
) -> Enlarged:
    """Interpolate every latent frame bicubically; normalisation makes no difference to that."""
    return _interpolate(latents.float(), scale)


@torch.no_grad()
def enlarge_pixels(vae: VideoVAE, latents: VideoLatents, scale: int, budget: int | None = None) -> Enlarged:
    """Decode, interpolate the pictures, encode: what the refining stage gets is a clip that the VAE knows.

    Args:
        budget: Bytes that decoding may take; by default by what is free.
    """
    if vae.encoder is None:
        raise RequestError("upsampler='pixels' needs the encoder of the video VAE, which this file lacks")
    with in_use(vae):
        weight = next(vae.parameters())
        pixels = decode_video(vae, latents, budget=budget)[None].to(weight.device).clamp(-1, 1)
        clip = _interpolate(pixels, scale).clamp(-1, 1)
        return encode_tiled(vae, clip.to(weight)).float()


TRAIN_FREE: dict[str, TrainFree] = {"pixels": enlarge_pixels, "bicubic": enlarge_latents}


def _interpolate(clip: VideoLatents, scale: int) -> Enlarged:
    frames = rearrange(clip, "b c f h w -> (b f) c h w")
    larger = F.interpolate(frames, scale_factor=scale, mode="bicubic", align_corners=False)
    whole: Tensor = rearrange(larger, "(b f) c h w -> b c f h w", b=clip.shape[0])
    return whole


def _released(generation: Generation) -> Path:
    """Find the spatial upsampler of a generation on this machine."""
    candidates = [
        release
        for release in RELEASES.values()
        if release.kind == "upsampler" and release.generation == generation.name and "spatial" in release.name
    ]
    for release in candidates:
        found = find_release(release)
        if found is not None:
            return found[0]
    if candidates:
        raise CheckpointError(f"a second stage needs an upsampler: {missing_message(candidates[0])}")
    raise CheckpointError(
        f"no upsampler was trained for the {generation.title} model; --upsampler pixels or bicubic enlarges "
        "without one, --plan one_stage makes any size at once, --upsampler FILE takes one of your own"
    )
