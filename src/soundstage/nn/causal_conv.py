"""3-D convolution over video: time is padded by repeating edge frames, space with zeros or a mirror."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SpatialPadding = Literal["zeros", "reflect"]


class VideoConv(nn.Module):
    """3×3×3 convolution that never pads time with zeros.

    Causal: two copies of the first frame go in front, so a frame sees only itself and earlier ones. Otherwise
    one copy of the first frame goes in front and one of the last behind. The weights are below `conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        causal: bool,
        padding: SpatialPadding = "zeros",
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.causal = causal
        self.padding = padding
        self.spatial_padding = (0, 1, 1) if padding == "zeros" else (0, 0, 0)
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=self.spatial_padding)

    def forward(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c2 f2 h2 w2"]:
        """Convolve; the size stays the same at stride 1."""
        behind = [] if self.causal else [x[:, :, -1:]]
        return self.over(torch.cat([*self.front(x), x, *behind], dim=2))

    def front(self, x: Float[Tensor, "b c f h w"]) -> list[Tensor]:
        """Return what goes in front of a clip: its first frame, once or twice."""
        return [x[:, :, :1]] * (2 if self.causal else 1)  # an expanded one would not keep channels last

    def over(self, x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c2 f2 h2 w2"]:
        """Convolve frames that have all their neighbours; at stride 1 two fewer come out."""
        if self.padding == "reflect":
            x = mirrored(x)
        conv = self.conv
        if _prefers_onednn(x, conv.weight):
            return torch.mkldnn_convolution(
                x, conv.weight, conv.bias, self.spatial_padding, conv.stride, conv.dilation, conv.groups
            )
        result: Tensor = conv(x)
        return result


def mirrored(x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h2 w2"]:
    """Mirror frames by one pixel at their edges; channels that lie last in memory stay there.

    CUDA's padding would lay them first, and every convolution would lay them last again. So it is shown
    height, width and channels as the three axes that it pads, the channels by nothing.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last_3d):
        return F.pad(x, (1, 1, 1, 1, 0, 0), mode="reflect")
    padded = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, 1, 1, 1, 1), mode="reflect")  # (b, f, h, w, c)
    return padded.permute(0, 4, 1, 2, 3)


def _prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether to name oneDNN's convolution on a CPU, where torch takes another for small clips.

    That other one gathers the neighbours of every point: 27 times the memory, and two to three times the
    time, measured with 8 to 128 channels on one thread.
    """
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    is_plain = x.device.type == "cpu" and x.dtype == torch.float32 and not learns
    return is_plain and bool(torch.backends.mkldnn.enabled) and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def pixel_norm(x: Float[Tensor, "b c *size"], eps: float) -> Float[Tensor, "b c *size"]:
    """Divide each location by the root mean square of its channels (Karras et al. 2018, section 4.2).

    The mean is taken in at least float32 whatever the activations' dtype.
    """
    if x.dtype in (torch.bfloat16, torch.float16):  # sums in float32, without a copy of `x` in it
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        mean_square = norm.square() / x.shape[1]
    else:
        mean_square = x.square().mean(dim=1, keepdim=True)
    return x * torch.rsqrt(mean_square + eps).to(x.dtype)
