"""The building blocks of the video VAE: residual blocks, and space-time shuffles with averaging shortcuts."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.nn.causal_conv import SpatialPadding, VideoConv, pixel_norm

PIXEL_NORM_EPS = 1e-8  # the audio VAE uses 1e-6

Features = Float[Tensor, "b c f h w"]
Stride = tuple[int, int, int]


def patchify(pixels: Float[Tensor, "b c frames height width"], size: int) -> Float[Tensor, "b c2 f h w"]:
    """Move `size`×`size` pixel squares into channels, ordered (colour, x offset, y offset)."""
    return rearrange(pixels, "b c f (h q) (w r) -> b (c r q) f h w", q=size, r=size)


def unpatchify(x: Features, size: int) -> Float[Tensor, "b c2 frames height width"]:
    """Invert `patchify`."""
    return rearrange(x, "b (c r q) f h w -> b c f (h q) (w r)", q=size, r=size)


def space_to_depth(x: Features, stride: Stride) -> Float[Tensor, "b c2 f2 h2 w2"]:
    """Move (time, height, width) blocks into channels, ordered (channel, time, y, x)."""
    t, h, w = stride
    return rearrange(x, "b c (f p) (h q) (w r) -> b (c p q r) f h w", p=t, q=h, r=w)


def depth_to_space(x: Features, stride: Stride) -> Float[Tensor, "b c2 f2 h2 w2"]:
    """Invert `space_to_depth`."""
    t, h, w = stride
    return rearrange(x, "b (c p q r) f h w -> b c (f p) (h q) (w r)", p=t, q=h, r=w)


def normed(x: Features) -> Features:
    """Bring features to unit size and bend them, as every convolution but the first wants them."""
    return F.silu(pixel_norm(x, PIXEL_NORM_EPS), inplace=not x.requires_grad)


class ResBlock(nn.Module):
    """Two normalised convolutions around a shortcut; the width stays."""

    def __init__(self, channels: int, *, causal: bool, padding: SpatialPadding) -> None:
        super().__init__()
        self.conv1 = VideoConv(channels, channels, causal=causal, padding=padding)
        self.conv2 = VideoConv(channels, channels, causal=causal, padding=padding)

    def forward(self, x: Features) -> Features:
        """Refine the features."""
        h: Tensor = self.conv1(normed(x))
        h = self.conv2(normed(h))
        return h + x  # in the layout of what convolutions give


class ResGroup(nn.Module):
    """A run of residual blocks at one resolution."""

    def __init__(self, channels: int, num_layers: int, *, causal: bool, padding: SpatialPadding) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ResBlock(channels, causal=causal, padding=padding) for _ in range(num_layers)
        )

    def forward(self, x: Features) -> Features:
        """Apply the blocks in turn."""
        for block in self.res_blocks:
            x = block(x)
        return x


class Downsample(nn.Module):
    """Shrink by shuffling into channels, with a shortcut that averages neighbouring channels.

    In time, the first frame is doubled beforehand, so that latent frame 0 holds pixel frame 0 alone.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Stride, *, causal: bool, padding: SpatialPadding
    ) -> None:
        super().__init__()
        self.stride = stride
        self.group_size = in_channels * _volume(stride) // out_channels
        self.conv = VideoConv(in_channels, out_channels // _volume(stride), causal=causal, padding=padding)

    def forward(self, x: Features) -> Float[Tensor, "b c2 f2 h2 w2"]:
        """Halve the strided axes; `2 f - 1` frames become `f`."""
        if self.stride[0] == 2:
            x = _repeat_first_frame(x)
        skip = rearrange(space_to_depth(x, self.stride), "b (c g) f h w -> b c g f h w", g=self.group_size)
        return space_to_depth(self.conv(x), self.stride) + skip.mean(dim=2)


class Upsample(nn.Module):
    """Grow by shuffling channels into space and time, optionally adding the shuffled input.

    In time, the first output frame is dropped, so that latent frame 0 becomes one pixel frame.
    """

    def __init__(
        self,
        in_channels: int,
        stride: Stride,
        *,
        multiplier: int,
        residual: bool,
        causal: bool,
        padding: SpatialPadding,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.residual = residual
        self.repeats = _volume(stride) // multiplier  # how often the shortcut's channels are tiled
        out_channels = in_channels * _volume(stride) // multiplier
        self.conv = VideoConv(in_channels, out_channels, causal=causal, padding=padding)

    def forward(self, x: Features) -> Float[Tensor, "b c2 f2 h2 w2"]:
        """Double the strided axes; `f` frames become `2 f - 1`."""
        out = self.grow(self.conv(x), x)
        return out[:, :, 1:] if self.stride[0] == 2 else out

    def grow(self, convolved: Float[Tensor, "b c3 f h w"], x: Features) -> Float[Tensor, "b c2 f2 h2 w2"]:
        """Shuffle what the convolution made of `x` into place, and add `x` if the block is residual."""
        out = depth_to_space(convolved, self.stride)
        if self.residual:
            shuffled = depth_to_space(x, self.stride).unsqueeze(1)
            out = rearrange(out, "b (r c) f h w -> b r c f h w", r=self.repeats) + shuffled
            out = out.flatten(1, 2)
        return out


def _repeat_first_frame(x: Features) -> Float[Tensor, "b c f2 h w"]:
    return torch.cat([x[:, :, :1], x], dim=2)


def _volume(stride: Stride) -> int:
    return stride[0] * stride[1] * stride[2]
