"""The causal video VAE: pixels to normalised latents and back.

In the released checkpoints 32 × 32 pixels and 8 frames become one cell of 128 channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import VideoLatents, VideoPixels
from soundstage.models.video_vae.blocks import (
    Downsample,
    ResGroup,
    Upsample,
    normed,
    patchify,
    unpatchify,
)
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.nn.causal_conv import VideoConv

MIN_CONSTANT_LOG_VARIANCE = -30.0


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over un-normalised latents."""

    mean: Float[Tensor, "b c f h w"]
    log_variance: Float[Tensor, "b c f h w"]

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c f h w"]:
        """Draw with the reparametrisation trick; noise comes from the CPU."""
        noise = torch.randn(self.mean.shape, generator=generator)
        noise = noise.to(self.mean.device, self.mean.dtype)
        return self.mean + noise * (0.5 * self.log_variance).exp()

    def kl(self) -> Float[Tensor, " b"]:
        """Divergence from the unit Gaussian, summed over channels, averaged over cells.

        Source: Kingma & Welling 2014, appendix B.
        """
        variance = self.log_variance.exp()
        per_channel = 0.5 * (self.mean.square() + variance - 1 - self.log_variance)
        return per_channel.sum(dim=1).flatten(1).mean(dim=1)


class Statistics(nn.Module):
    """Per-channel mean and deviation of the latents over the training data, as the checkpoint states them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean-of-means", torch.full((channels,), torch.nan))
        self.register_buffer("std-of-means", torch.full((channels,), torch.nan))

    def normalise(self, latents: VideoLatents) -> VideoLatents:
        """Map raw latents to zero mean and unit deviation."""
        mean, std = self._shaped(latents)
        return (latents - mean) / std

    def denormalise(self, latents: VideoLatents) -> VideoLatents:
        """Invert `normalise`."""
        mean, std = self._shaped(latents)
        return latents * std + mean

    def _shaped(self, like: Tensor) -> tuple[Tensor, Tensor]:
        names = ("mean-of-means", "std-of-means")
        mean, std = (self.get_buffer(name).to(like.dtype).view(1, -1, 1, 1, 1) for name in names)
        return mean, std


class Encoder(nn.Module):
    """Causal: latent frame k sees pixel frames up to 8 k and no later ones."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        padding = config.encoder_padding
        channels = config.encoder_base_channels
        self.conv_in = VideoConv(3 * config.patch_size**2, channels, causal=True, padding=padding)
        self.down_blocks = nn.ModuleList()
        for block in config.encoder_blocks:
            if block.kind == "res_x":
                self.down_blocks.append(ResGroup(channels, block.num_layers, causal=True, padding=padding))
                continue
            wider = channels * block.multiplier
            self.down_blocks.append(Downsample(channels, wider, block.stride, causal=True, padding=padding))
            channels = wider
        extra = config.latent_channels if config.log_variance == "per_channel" else 1
        self.conv_out = VideoConv(channels, config.latent_channels + extra, causal=True, padding=padding)

    def forward(self, pixels: VideoPixels) -> Posterior:
        """Encode a clip of 8 k + 1 frames (official models), or 4 k + 1 (the one inside)."""
        x = self.conv_in(patchify(pixels, self.config.patch_size))
        for block in self.down_blocks:
            x = block(x)
        x = self.conv_out(normed(x))
        mean, log_variance = x.split(
            [self.config.latent_channels, x.shape[1] - self.config.latent_channels], 1
        )
        if self.config.log_variance == "constant":
            log_variance = torch.full_like(log_variance, MIN_CONSTANT_LOG_VARIANCE)
        return Posterior(mean, log_variance.expand_as(mean))


class Decoder(nn.Module):
    """Sees past and future frames, unless the header says that it is causal."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        causal, padding = config.causal_decoder, config.decoder_padding
        blocks = config.decoder_blocks[::-1]  # the header lists them from the pixels inwards
        channels = config.decoder_base_channels
        for block in blocks:
            channels *= block.multiplier
        self.conv_in = VideoConv(config.latent_channels, channels, causal=causal, padding=padding)
        self.up_blocks = nn.ModuleList()
        for block in blocks:
            if block.kind == "res_x":
                self.up_blocks.append(ResGroup(channels, block.num_layers, causal=causal, padding=padding))
                continue
            self.up_blocks.append(
                Upsample(
                    channels,
                    block.stride,
                    multiplier=block.multiplier,
                    residual=block.residual,
                    causal=causal,
                    padding=padding,
                )
            )
            channels //= block.multiplier
        self.conv_out = VideoConv(channels, 3 * config.patch_size**2, causal=causal, padding=padding)

    def forward(self, latents: Float[Tensor, "b c f h w"]) -> VideoPixels:
        """Decode un-normalised latents; the range is about [-1, 1], not clamped."""
        x = self.conv_in(latents)
        for block in self.up_blocks:
            x = block(x)
        x = self.conv_out(normed(x))
        return unpatchify(x, self.config.patch_size)


class VideoVAE(nn.Module):
    """Encoder, decoder, or both, with the statistics that they share.

    Source: LTX-2, arXiv 2601.03233; LTX-Video, arXiv 2501.00103, section 2.
    """

    def __init__(self, config: VideoVAEConfig, *, encoder: bool = True, decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.geometry = config.geometry
        self.encoder = Encoder(config) if encoder else None
        self.decoder = Decoder(config) if decoder else None
        self.per_channel_statistics = Statistics(config.latent_channels)

    def posterior(self, pixels: VideoPixels) -> Posterior:
        """Encode to the distribution over un-normalised latents; for training."""
        if self.encoder is None:
            raise RuntimeError("this video VAE was built without its encoder")
        self.geometry.check_num_frames(pixels.shape[2])
        self.geometry.check_size(pixels.shape[3], pixels.shape[4], self.geometry.spatial_factor)
        posterior: Posterior = self.encoder(pixels)
        return posterior

    def encode(self, pixels: VideoPixels) -> VideoLatents:
        """Encode to normalised latents: the posterior's mean.

        Raises:
            RequestError: The clip's size or frame count does not fit the grid.
        """
        return self.per_channel_statistics.normalise(self.posterior(pixels).mean)

    def decode(self, latents: VideoLatents) -> VideoPixels:
        """Decode normalised latents; f latent frames give 8 (f - 1) + 1 pixel frames."""
        if self.decoder is None:
            raise RuntimeError("this video VAE was built without its decoder")
        pixels: Tensor = self.decoder(self.per_channel_statistics.denormalise(latents))
        return pixels
