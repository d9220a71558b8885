"""Train the video VAE on rendered clips.

Squared error weighted towards motion (absolute error settles on the median and lets small moving things
vanish), a gradient term for sharp edges, and a small pull of the latents towards the unit Gaussian.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.config import from_dict
from soundstage.core.types import VideoPixels
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.training.export import read_component
from soundstage.training.principal_start import (
    shield_constants,
    solve_decoder,
    start_from_principal_components,
)
from soundstage.training.recipe import Recipe
from soundstage.training.samples import HELD_OUT_SEED, WorldSource

MOTION_THRESHOLD = 0.1  # of the range [-1, 1]; what moves differs from the clip's median frame by more


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Loss weights."""

    motion_weight: float = 8.0  # of moving pixels, against 1 elsewhere
    gradient_weight: float = 0.5  # of differences between neighbouring pixels
    kl_weight: float = 1e-5
    principal_start_clips: int = 0  # from which a linear start is solved; 0 = random weights
    crop_size: int = 0  # pixels of a square excerpt; 0 = whole pictures
    moving_share: float = 0.75  # of excerpts that are placed where something moves
    latent_noise: float = (
        0.0  # most of extra noise on latents: a decoder that forgives what diffusion gets wrong
    )
    encoder: str = ""  # file of a trained video VAE; its encoder is kept, so that its latents stay valid
    latent_tilt: float = 0.0  # 0: all latent channels alike; 1: as large as what they change in the picture
    num_validation_clips: int = 16
    num_statistics_clips: int = 64  # from which the latents' mean and deviation are measured


class VideoVAETask:
    """Reconstruct rendered clips."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.settings = from_dict(Settings, recipe.settings, where="settings")
        self.vae = VideoVAE(VideoVAEConfig.from_header(recipe.model["vae"])).to(device)
        for kernel in self.vae.parameters():
            if kernel.ndim == 5:
                kernel.data = kernel.data.to(memory_format=torch.channels_last_3d)  # a third faster on CPUs
        for name, value in (("mean-of-means", 0.0), ("std-of-means", 1.0)):
            self.vae.per_channel_statistics.get_buffer(name).fill_(value)
        self.source = WorldSource(recipe.data, device)
        if self.settings.principal_start_clips:
            self._start(self.source.video(recipe.seed, self.settings.principal_start_clips))
        self.modules: dict[str, nn.Module] = {"loss": self.vae}

    def _start(self, clips: VideoPixels) -> None:
        """Solve for a linear start, on a given encoder if there is one."""
        start_from_principal_components(self.vae, clips)
        if self.settings.encoder:
            tensors = read_component(Path(self.settings.encoder))[1]
            kept = ("vae.encoder.", "vae.per_channel_statistics.")
            given = {key.removeprefix("vae."): t for key, t in tensors.items() if key.startswith(kept)}
            self.vae.load_state_dict(self.vae.state_dict() | given)
            solve_decoder(self.vae, clips)
            if self.vae.encoder is not None:
                self.vae.encoder.requires_grad_(False)
        shield_constants(self.vae, clips[:2])

    def batch(self, seed: int) -> VideoPixels:
        """Render clips and cut an excerpt from each: small ones make a batch of many scenes affordable."""
        rng = random.Random(seed)
        clips = self.source.video(seed, self.recipe.batch_size)
        return torch.stack([self._excerpt(clip, rng) for clip in clips])

    def _excerpt(self, clip: Float[Tensor, "3 frames height width"], rng: random.Random) -> Tensor:
        """Cut a window in time and a square in space, mostly around something that moves."""
        window, crop = self.recipe.data.window_frames, self.settings.crop_size
        if window is not None and window < clip.shape[1]:
            first = rng.randrange(clip.shape[1] - window + 1)
            clip = clip[:, first : first + window]
        if not crop:
            return clip
        row, column = rng.randrange(clip.shape[2]), rng.randrange(clip.shape[3])
        if rng.random() < self.settings.moving_share:
            places = moving(clip[None])[0, 0, rng.randrange(clip.shape[1])].nonzero()
            if len(places):
                row, column = places[rng.randrange(len(places))].tolist()
        top, left = (
            min(max(centre + rng.randrange(-crop // 4, crop // 4) - crop // 2, 0), extent - crop)
            for centre, extent in ((row, clip.shape[2]), (column, clip.shape[3]))
        )
        return clip[:, :, top : top + crop, left : left + crop]

    def loss(
        self, phase: str, batch: VideoPixels, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Weigh reconstruction, edges and divergence."""
        del phase
        posterior = self.vae.posterior(batch)
        latents = posterior.sample(generator)
        if self.settings.latent_noise:
            level = self.settings.latent_noise * torch.rand(len(batch), 1, 1, 1, 1, generator=generator)
            noise = level * torch.randn(latents.shape, generator=generator)
            latents = latents + noise.to(latents)
        decoded = self.vae.decode(self.vae.per_channel_statistics.normalise(latents))
        weight = 1 + self.settings.motion_weight * moving(batch)
        squared = ((decoded - batch).square() * weight).mean()
        gradient = gradient_error(decoded, batch, weight)
        kl = posterior.kl().mean()
        loss = squared + self.settings.gradient_weight * gradient + self.settings.kl_weight * kl
        return loss, {"squared": squared.item(), "gradient": gradient.item(), "kl": kl.item()}

    def validate(self) -> dict[str, float]:
        """Measure reconstruction from the posterior mean on held-out clips, whole and where things move."""
        self.measure_statistics()
        all_errors, moving_errors = [], []
        for index in range(self.settings.num_validation_clips):
            pixels = self.source.video(HELD_OUT_SEED + index, 1, split="held_out")
            error = (self.vae.decode(self.vae.encode(pixels)).clamp(-1, 1) - pixels).square()
            mask = moving(pixels).expand_as(error)
            all_errors.append(error.mean())
            moving_errors.append((error * mask).sum() / mask.sum().clamp(min=1))
        return {"psnr": psnr(torch.stack(all_errors)), "psnr_moving": psnr(torch.stack(moving_errors))}

    @torch.no_grad()
    def measure_statistics(self) -> None:
        """Set the latents' per-channel mean and deviation from rendered clips; a given encoder has its own.

        With `latent_tilt`, normalised latents are larger the more they matter to the picture. Diffusion then
        settles what matters first, at high noise, and does not spend its capacity on traces.
        """
        if self.settings.encoder:
            return
        clips = [
            self.source.video(HELD_OUT_SEED - 1 - i, 1) for i in range(self.settings.num_statistics_clips)
        ]
        latents = [self.vae.posterior(clip).mean for clip in clips]
        flat = torch.cat([latent.transpose(0, 1).flatten(1) for latent in latents], dim=1)
        mean, std = flat.mean(1), flat.std(1)
        if self.settings.latent_tilt and self.vae.decoder is not None:
            effect = channel_effects(self.vae.decoder, torch.cat(latents[:4]), mean)
            size = effect**self.settings.latent_tilt
            std = std * size.square().mean().sqrt() / size
        self.vae.per_channel_statistics.get_buffer("mean-of-means").copy_(mean)
        self.vae.per_channel_statistics.get_buffer("std-of-means").copy_(std)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the `vae` section and tensors."""
        self.measure_statistics()
        return {"vae": self.vae.config.to_header()}, {f"vae.{k}": v for k, v in self.vae.state_dict().items()}

    def memory(self) -> dict[str, Tensor]:
        """Return nothing: clips are functions of the step."""
        return {}

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take nothing back."""


def channel_effects(
    decoder: nn.Module, latents: Float[Tensor, "b c f h w"], mean: Float[Tensor, " c"]
) -> Float[Tensor, " c"]:
    """Measure how much the picture changes, in root mean square, when a channel is held at its mean."""
    whole = decoder(latents)
    effects = []
    for channel in range(latents.shape[1]):
        without = latents.clone()
        without[:, channel] = mean[channel]
        effects.append((decoder(without) - whole).square().mean().sqrt())
    return torch.stack(effects)


def moving(pixels: VideoPixels) -> Float[Tensor, "b 1 frames height width"]:
    """Mark pixels that differ from the clip's median frame, widened by one pixel."""
    still = pixels.median(dim=2, keepdim=True).values
    changed = ((pixels - still).abs().amax(dim=1, keepdim=True) > MOTION_THRESHOLD).to(pixels.dtype)
    return F.max_pool3d(changed, (1, 3, 3), stride=1, padding=(0, 1, 1))


def gradient_error(decoded: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compare differences between neighbours in time, height and width: squared error, weighted."""
    total = decoded.new_zeros(())
    for axis in (2, 3, 4):
        error = (decoded - target).diff(dim=axis).square()
        total = total + (error * weight.narrow(axis, 1, weight.shape[axis] - 1)).mean()
    return total


def psnr(mean_squared_errors: Float[Tensor, " clips"]) -> float:
    """Average peak signal-to-noise ratio in dB of clips in [-1, 1]."""
    return float((10 * torch.log10(4 / mean_squared_errors.clamp(min=1e-10))).mean())
