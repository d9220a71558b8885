"""The causal audio VAE: stereo log-mel to a small latent grid, 25 frames of 8 × 16 values a second, and back.

    log-mel (2, T, 64) --Encoder--> mean, log-variance (8, ceil(T / 4), 16) --normalise--> latents
    latents (8, L, 16) --un-normalise--> Decoder --> log-mel (2, 4 L - 3, 64)

The first latent frame stands for one mel frame and each further one for four, as in the video VAE. No layer
looks ahead, so encoding the beginning of a sound gives the beginning of its latents.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import AudioLatents
from soundstage.models.audio_vae.blocks import PIXEL_NORM_EPS, CausalConv2d, Level, MidBlocks
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.nn.causal_conv import pixel_norm

Mel = Float[Tensor, "b ch frames bins"]  # a log-mel beside latents, whose grid is called t m


class Encoder(nn.Module):
    """Log-mel to the posterior's means, then its log-variances, along the channel axis."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        self.conv_in = CausalConv2d(config.in_channels, config.ch)
        self.down = nn.ModuleList(
            Level((widths[i - 1] if i else config.ch, width), config.num_res_blocks, downsample=i < last)
            for i, width in enumerate(widths)
        )
        self.mid = MidBlocks(widths[-1])
        self.conv_out = CausalConv2d(widths[-1], 2 * config.z_channels)

    def forward(self, mel: Mel) -> Float[Tensor, "b c2 t m"]:
        """Encode; t is a quarter of the frames, rounded up."""
        x = self.conv_in(mel)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        moments: Tensor = self.conv_out(F.silu(pixel_norm(x, PIXEL_NORM_EPS)))
        return moments


class Decoder(nn.Module):
    """Un-normalised latents to log-mel; the levels are stored finest first and run coarsest first."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        self.conv_in = CausalConv2d(config.z_channels, widths[-1])
        self.mid = MidBlocks(widths[-1])
        self.up = nn.ModuleList(
            Level((widths[min(i + 1, last)], width), config.num_res_blocks + 1, upsample=i > 0)
            for i, width in enumerate(widths)
        )
        self.conv_out = CausalConv2d(widths[0], config.out_channels)

    def forward(self, latents: AudioLatents) -> Mel:
        """Decode; t latent frames give 4 t - 3."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        mel: Tensor = self.conv_out(F.silu(pixel_norm(x, PIXEL_NORM_EPS)))
        return mel


class Statistics(nn.Module):
    """Mean and deviation of the posterior means, one for each channel and bin, measured after training.

    They are stored flat, bins fastest, and start as NaN: only a file or `measure` can supply them.
    """

    def __init__(self, channels: int, bins: int) -> None:
        super().__init__()
        self.shape = (channels, 1, bins)
        self.register_buffer("mean-of-means", torch.full((channels * bins,), torch.nan))
        self.register_buffer("std-of-means", torch.full((channels * bins,), torch.nan))

    def normalise(self, latents: AudioLatents) -> AudioLatents:
        """Map raw latents to zero mean and unit deviation."""
        mean, std = self._shaped()
        return ((latents - mean) / std).to(latents.dtype)

    def denormalise(self, latents: AudioLatents) -> AudioLatents:
        """Invert `normalise`."""
        mean, std = self._shaped()
        return (latents * std + mean).to(latents.dtype)

    @torch.no_grad()
    def measure(self, latents: AudioLatents, log_variance: AudioLatents | None = None) -> None:
        """Take the statistics from the posteriors of many sounds, over the batch and time.

        Args:
            latents: Raw posterior means.
            log_variance: Of the posteriors. With it the deviation is that of samples, so that a cell which
                says nothing stays near zero instead of having its traces blown up to unit deviation.
        """
        std, mean = torch.std_mean(latents.to(torch.float32), dim=(0, 2))
        if log_variance is not None:
            std = (std.square() + log_variance.to(torch.float32).exp().mean(dim=(0, 2))).sqrt()
        self.get_buffer("mean-of-means").copy_(mean.flatten())
        self.get_buffer("std-of-means").copy_(std.flatten())

    def _shaped(self) -> tuple[Tensor, Tensor]:
        mean, std = (self.get_buffer(name).view(self.shape) for name in ("mean-of-means", "std-of-means"))
        dtype = torch.promote_types(mean.dtype, torch.float32)
        return mean.to(dtype), std.to(dtype)


class AudioVAE(nn.Module):
    """Encoder, decoder, or both, with the statistics that they share.

    The networks compute in their weights' dtype; a result has the dtype of what was given.

    Source: LTX-2, arXiv 2601.03233.
    """

    def __init__(self, config: AudioVAEConfig, *, encoder: bool = True, decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config) if encoder else None
        self.decoder = Decoder(config) if decoder else None
        self.per_channel_statistics = Statistics(config.z_channels, config.latent_bins)

    def encode_posterior(self, mel: Mel) -> tuple[AudioLatents, AudioLatents]:
        """Encode to the mean and log-variance of the un-normalised latents; for training."""
        if self.encoder is None:
            raise RuntimeError("this audio VAE was built without its encoder")
        moments: Tensor = self.encoder(mel.to(self.encoder.conv_in.conv.weight.dtype))
        mean, log_variance = moments.to(mel.dtype).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, mel: Mel) -> AudioLatents:
        """Encode log-mel to normalised latents: the posterior's mean."""
        return self.per_channel_statistics.normalise(self.encode_posterior(mel)[0])

    def decode(self, latents: AudioLatents) -> Mel:
        """Decode normalised latents to log-mel; t latent frames give 4 t - 3."""
        if self.decoder is None:
            raise RuntimeError("this audio VAE was built without its decoder")
        x = self.per_channel_statistics.denormalise(latents)
        mel: Tensor = self.decoder(x.to(self.decoder.conv_in.conv.weight.dtype))
        return mel.to(latents.dtype)
