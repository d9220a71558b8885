"""The parts of the audio VAE: two-dimensional convolutions that look back in time, never ahead.

Tensors are (b, c, t, m): time is the height axis and frequency the width axis.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.nn.causal_conv import pixel_norm

PIXEL_NORM_EPS = 1e-6  # the video VAE has 1e-8

Features = Float[Tensor, "b c t m"]


class CausalConv2d(nn.Module):
    """Convolve with zeros before the first frame, none after the last, and evenly padded frequencies."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.history = kernel_size - 1  # frames
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=(0, (kernel_size - 1) // 2))

    def forward(self, x: Float[Tensor, "b c t m"]) -> Float[Tensor, "b c2 t m"]:
        """Convolve; the size stays the same."""
        y: Tensor = self.conv(F.pad(x, (0, 0, self.history, 0)))
        return y


class ResBlock(nn.Module):
    """Two normalised convolutions around a skip, which a 1×1 convolution widens where needed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        self.nin_shortcut = (
            None if in_channels == out_channels else CausalConv2d(in_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Float[Tensor, "b c t m"]) -> Float[Tensor, "b c2 t m"]:
        """Add the residual."""
        skip = x if self.nin_shortcut is None else self.nin_shortcut(x)
        h = self.conv1(F.silu(pixel_norm(x, PIXEL_NORM_EPS)))
        y: Tensor = skip + self.conv2(F.silu(pixel_norm(h, PIXEL_NORM_EPS)))
        return y


class Downsample(nn.Module):
    """Halve both axes; an odd last frame is kept, so t frames become ceil(t / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c t m"]) -> Float[Tensor, "b c t2 m2"]:
        """Convolve with stride 2: zeros for two frames before, and for one bin above."""
        y: Tensor = self.conv(F.pad(x, (0, 1, 2, 0)))
        return y


class Upsample(nn.Module):
    """Double both axes and drop the first frame, so that frame 0 stays a single one: t become 2 t - 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(channels, channels)

    def forward(self, x: Float[Tensor, "b c t m"]) -> Float[Tensor, "b c t2 m2"]:
        """Repeat every cell, convolve, drop."""
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return y[:, :, 1:]


class MidBlocks(nn.Module):
    """The two residual blocks at the coarsest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Features) -> Features:
        """Run both."""
        y: Tensor = self.block_2(self.block_1(x))
        return y


class Level(nn.Module):
    """The residual blocks of one resolution, then perhaps a change of resolution."""

    def __init__(
        self, widths: tuple[int, int], num_blocks: int, *, downsample: bool = False, upsample: bool = False
    ) -> None:
        super().__init__()
        before, width = widths
        self.block = nn.ModuleList(ResBlock(width if i else before, width) for i in range(num_blocks))
        self.downsample = Downsample(width) if downsample else None
        self.upsample = Upsample(width) if upsample else None

    def forward(self, x: Float[Tensor, "b c t m"]) -> Float[Tensor, "b c2 t2 m2"]:
        """Run the blocks, then change the resolution."""
        for block in self.block:
            x = block(x)
        for resize in (self.downsample, self.upsample):
            x = x if resize is None else resize(x)
        return x
