"""Eight-bit floats (e4m3: four bits of exponent, three of mantissa), one scale per row of the weight.

    code = round(w / scale)    scale = max |row| / 448, the largest e4m3 number

A weight is off by at most 1/16 of itself (half a unit of three mantissa bits) or, near zero, by scale / 1024.
With `multiplies` the inputs are rounded likewise, a scale per token, and multiplied as eight-bit floats
where the device can (compute capability 8.9 and later); elsewhere the same arithmetic is done in the numbers
of the input.

Layers of one input that round it alike, such as queries, keys and values, have it rounded once.

The official fp8 files have one scale per weight and one for its inputs; they are taken as they are.

Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from soundstage.nn.kernels.choice import TORCH, Kernels
from soundstage.nn.linear import RoundedInput, RoundsInput
from soundstage.runtime.quantization.layer import QuantizedLinear

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
RELATIVE_ERROR = 2.0**-4  # half a unit of the last of three mantissa bits
SMALLEST_STEP = 2.0**-9  # between the numbers next to zero
MULTIPLE = 16  # of rows and columns, for the matrix units


class Fp8Linear(QuantizedLinear, RoundsInput):
    """A linear layer with an e4m3 weight."""

    codes: Tensor  # (outputs, inputs), e4m3
    scale: Tensor  # (outputs, 1), float32
    kernels: Kernels = TORCH  # what rounds the inputs; see `use_kernels`
    input_scale: Tensor | None  # one number, where the file gives it; otherwise every token gets its own

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        multiplies: bool = True,
        has_input_scale: bool = False,
    ) -> None:
        """Make an empty layer.

        Args:
            multiplies: Multiply eight-bit inputs and weights, instead of widening the weight first.
            has_input_scale: Expect a fixed scale of the inputs.
        """
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)
        self.multiplies = multiplies
        self.register_buffer("codes", torch.empty(out_features, in_features, dtype=E4M3, device=device))
        self.register_buffer("scale", torch.ones(out_features, 1, device=device))
        self.register_buffer("input_scale", torch.ones((), device=device) if has_input_scale else None)
        self._stored_scale: float | None = None  # the same as it was read; None where it may be another

    def take_rows(self, start: int, rows: Float[Tensor, "rows inputs"]) -> None:
        """Round some rows."""
        codes, scale = quantize_rows(rows.float())
        self.codes[start : start + len(rows)] = codes
        self.scale[start : start + len(rows)] = scale

    def rows_of_weight(self, start: int, stop: int) -> Float[Tensor, "rows inputs"]:
        """Widen some rows."""
        return self.codes[start:stop].to(self.dtype).mul_(self.scale[start:stop])

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._stored_scale = None
        super()._load_from_state_dict(*args, **options)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Multiply, as eight-bit floats if asked to."""
        return self.multiply(self.round_input(x)) if self.multiplies else super().forward(x)

    @property
    def rounds(self) -> bool:
        """Whether inputs are rounded, too."""
        return self.multiplies

    def rounds_like(self, other: RoundsInput) -> bool:
        """Tell whether another layer rounds alike: each token by its own scale, or all by the same one."""
        if not isinstance(other, Fp8Linear):
            return False
        if self.input_scale is None or other.input_scale is None:
            return self.input_scale is other.input_scale and self.kernels is other.kernels
        if torch.compiler.is_compiling():  # a number of each layer would make code for each layer
            return False
        return self._stored_scale is not None and self._stored_scale == other._stored_scale

    def round_input(self, x: Float[Tensor, "... inputs"]) -> RoundedInput:
        """Round every token."""
        rows = x.flatten(0, -2)
        if self.input_scale is None:
            return RoundedInput(x, *self.kernels.quantise_rows(rows))
        codes, scale = quantize_rows(rows, self.input_scale)
        return RoundedInput(x, codes, scale)

    def multiply(self, x: RoundedInput) -> Float[Tensor, "... outputs"]:
        """Multiply eight-bit floats, where the device can; else the same numbers in the type of the input."""
        dtype, codes, scale = x.exact.dtype, x.codes, x.scale
        if _can_multiply(x.exact, self.in_features, self.out_features):
            bias = None if self.bias is None else self.bias.to(dtype)
            scale = scale.expand(len(codes), 1).contiguous()
            out = torch._scaled_mm(
                codes,
                self.codes.t(),
                scale,
                self.scale.t(),
                bias=bias,
                out_dtype=dtype,
                use_fast_accum=True,
            )
        else:
            out = F.linear(codes.to(dtype), self.codes.to(dtype)).float() * scale * self.scale.t()
            out = (out if self.bias is None else out + self.bias.float()).to(dtype)
        return out.view(*x.exact.shape[:-1], self.out_features)


class StoredFp8Linear(Fp8Linear):
    """A layer of an official fp8 file: codes, the scale of the weight and perhaps that of the inputs."""

    def take_stored(self, name: str, value: Tensor) -> None:
        """Take "weight", "weight_scale" or "input_scale" as the file has it, bit for bit."""
        if name == "weight":
            self.codes = value
        elif name == "weight_scale":
            self.scale.copy_(value.float().reshape(-1, 1).expand_as(self.scale))
        elif self.input_scale is not None:
            self.input_scale.copy_(value.float().reshape(()))
            self._stored_scale = float(value)


def quantize_rows(
    x: Float[Tensor, "rows columns"], scale: Float[Tensor, ""] | None = None
) -> tuple[Tensor, Float[Tensor, "#rows 1"]]:
    """Round to e4m3, every row by its own scale in float32 or all by the one given."""
    if scale is None:
        scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / LARGEST
    else:
        scale = scale.float().reshape(1, 1)
    return (x / scale).clamp_(-LARGEST, LARGEST).to(E4M3), scale


def weight_error(weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """Bound how far the stored weight is from `weight`, element by element."""
    scale = weight.float().abs().amax(-1, keepdim=True) / LARGEST
    return torch.maximum(RELATIVE_ERROR * weight.float().abs(), scale * SMALLEST_STEP / 2)


def _can_multiply(x: Tensor, in_features: int, out_features: int) -> bool:
    """Tell whether the device has matrix units for these sizes; they write bfloat16 only."""
    if (
        x.device.type != "cuda"
        or x.dtype != torch.bfloat16
        or in_features % MULTIPLE
        or out_features % MULTIPLE
    ):
        return False
    return torch.cuda.get_device_capability(x.device) >= (8, 9)
