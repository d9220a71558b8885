"""One-dimensional convolutions that compute in float32 even where weights are stored in bfloat16.

Rounding activations to bfloat16 inside a vocoder is audible; rounding its weights is not.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T", Tensor, Tensor | None)

Signal = Float[Tensor, "b c n"]


def widen(tensor: T) -> T:
    """Raise to float32 whatever is narrower."""
    if tensor is None:
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class WideConv1d(nn.Conv1d):
    """Convolve without changing the length."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1, bias: bool = True
    ) -> None:
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias
        )

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c2 n"]:
        """Convolve in at least float32."""
        weight, bias = widen(self.weight), widen(self.bias)
        return F.conv1d(x, weight, bias, padding=self.padding, dilation=self.dilation)


class WideUpsample1d(nn.ConvTranspose1d):
    """Multiply the length by `rate` exactly."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, rate: int) -> None:
        self.crop = (kernel_size - rate) // 2
        super().__init__(in_channels, out_channels, kernel_size, stride=rate, padding=self.crop)

    def forward(
        self, x: Float[Tensor, "b c n"], output_size: list[int] | None = None
    ) -> Float[Tensor, "b c2 n2"]:
        """Convolve in at least float32."""
        assert output_size is None, "the length follows from the rate"
        weight, bias = widen(self.weight), widen(self.bias)
        return F.conv_transpose1d(x, weight, bias, stride=self.stride, padding=self.crop)


def initialise(generator: nn.Module) -> None:
    """Set all convolutions so that a signal keeps its size from the first layer to the last.

    The usual N(0, 0.01) is meant for weight-normalised layers; plain ones would start near silence and learn
    slowly. The second convolution of a residual pair starts small, and so does the last layer.
    """
    for name, module in generator.named_modules():
        if not isinstance(module, WideConv1d | WideUpsample1d):
            continue
        inputs_per_output = module.in_channels * module.kernel_size[0] / module.stride[0]
        gain = 0.2 if "convs2" in name or "conv_post" in name else 1.0
        if not module.weight.is_meta:  # drawing on `meta` would import torch's compiler, for seconds
            nn.init.normal_(module.weight, std=gain * math.sqrt(2 / inputs_per_output))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
