"""Latent upsamplers: more rows, columns or frames of video latents, between two stages of generation.

    latents → conv → residual blocks → change of size → residual blocks → conv → latents

They work on un-normalised latents. Group norms measure the whole clip, so a clip must not be cut into tiles.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import VideoLatents
from soundstage.models.upsampler.config import NORM_GROUPS, LatentUpsamplerConfig

Resized = Float[Tensor, "b c f2 h2 w2"]


class ResBlock(nn.Module):
    """Two convolutions with group norms, the last activation behind the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels)

    def forward(self, x: VideoLatents) -> VideoLatents:
        """Add the residual."""
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(x + self.norm2(self.conv2(h)))


class SpatialShuffle(nn.Module):
    """Spread channels over factor × factor cells, the row offset slower than the column offset."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Shuffle."""
        return F.pixel_shuffle(x, self.factor)


class TimeShuffle(nn.Module):
    """Spread channels over two frames, and over 2 × 2 cells where asked, and drop the first frame.

    The first latent frame stands for one pixel frame only, so one of the two it becomes is too many.
    """

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = 2 if spatial else 1

    def forward(self, x: VideoLatents) -> Float[Tensor, "b c2 f2 h2 w2"]:
        """Shuffle; f frames become 2 f - 1."""
        x = rearrange(
            x,
            "b (c pf ph pw) f h w -> b c (f pf) (h ph) (w pw)",
            pf=2,
            ph=self.spatial,
            pw=self.spatial,
        )
        return x[:, :, 1:]


class BlurDownsample(nn.Module):
    """Blur with a binomial 5 × 5 kernel and keep every `stride`-th row and column."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("kernel", torch.outer(row, row)[None, None])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Shrink; at stride 1 nothing happens, though files hold the kernel even then."""
        if self.stride == 1:
            return x
        channels = x.shape[1]
        kernel = self.get_buffer("kernel").to(x.dtype).expand(channels, -1, -1, -1)
        return F.conv2d(x, kernel, stride=self.stride, padding=2, groups=channels)


class RationalResampler(nn.Module):
    """Enlarge by the numerator with a pixel shuffle, shrink by the denominator with a blur."""

    def __init__(self, channels: int, numerator: int, denominator: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * numerator**2, 3, padding=1)
        self.pixel_shuffle = SpatialShuffle(numerator)
        self.blur_down = BlurDownsample(denominator)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Resize."""
        y: Tensor = self.blur_down(self.pixel_shuffle(self.conv(x)))
        return y


def build_resizer(config: LatentUpsamplerConfig) -> nn.Module:
    """Choose what changes the size; spatial ones see single frames, temporal ones whole clips."""
    channels = config.mid_channels
    if config.temporal_upsample:
        parts = 8 if config.spatial_upsample else 2
        return nn.Sequential(
            nn.Conv3d(channels, parts * channels, 3, padding=1), TimeShuffle(config.spatial_upsample)
        )
    if config.is_rational:
        return RationalResampler(channels, config.scale.numerator, config.scale.denominator)
    return nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1), SpatialShuffle(2))


class LatentUpsampler(nn.Module):
    """Upsample un-normalised video latents; the caller removes and restores the VAE's normalisation.

    Source: LTX-2, arXiv 2601.03233.
    """

    def __init__(self, config: LatentUpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        channels, blocks = config.mid_channels, config.num_blocks_per_stage
        self.initial_conv = nn.Conv3d(config.in_channels, channels, 3, padding=1)
        self.initial_norm = nn.GroupNorm(NORM_GROUPS, channels)
        self.res_blocks = nn.ModuleList(ResBlock(channels) for _ in range(blocks))
        self.upsampler = build_resizer(config)
        self.post_upsample_res_blocks = nn.ModuleList(ResBlock(channels) for _ in range(blocks))
        self.final_conv = nn.Conv3d(channels, config.in_channels, 3, padding=1)

    def forward(self, latents: VideoLatents) -> Resized:
        """Upsample in the weights' dtype; the result has that of the latents."""
        x = F.silu(self.initial_norm(self.initial_conv(latents.to(self.initial_conv.weight.dtype))))
        for block in self.res_blocks:
            x = block(x)
        x = self.resize(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        result: Tensor = self.final_conv(x)
        return result.to(latents.dtype)

    def resize(self, x: VideoLatents) -> Resized:
        """Change the size of the features, frame by frame unless time is upsampled."""
        if self.config.temporal_upsample:
            clip: Tensor = self.upsampler(x)
            return clip
        frames = self.upsampler(rearrange(x, "b c f h w -> (b f) c h w"))
        folded: Tensor = rearrange(frames, "(b f) c h w -> b c f h w", b=x.shape[0])
        return folded
