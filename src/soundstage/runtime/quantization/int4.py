"""Four-bit integers, a scale and an offset per group of 64 weights of a row; widened for use.

    code = round((w - offset) / scale) in 0 ... 15    offset = min of the group, scale = (max - min) / 15

Scale and offset are stored in bfloat16 and the codes made for them as they are stored. A weight is off by at
most half a step, plus what rounding the offset moves the ends of the range.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.runtime.quantization.layer import QuantizedLinear

GROUP = 64  # weights that share a scale
LAST_CODE = 15
ROUNDING = 2.0**-8  # of bfloat16, relative


class Int4Linear(QuantizedLinear):
    """A linear layer with a four-bit weight, two codes to a byte."""

    codes: Tensor  # (outputs, inputs / 2), uint8: the even input in the low half
    scale: Tensor  # (outputs, groups), bfloat16
    offset: Tensor  # (outputs, groups), bfloat16

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        """Make an empty layer; rows whose length is no multiple of 64 get smaller groups."""
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)
        assert in_features % 2 == 0
        self.group = math.gcd(in_features, GROUP)
        shape = (out_features, in_features // self.group)
        self.register_buffer(
            "codes", torch.empty(out_features, in_features // 2, dtype=torch.uint8, device=device)
        )
        self.register_buffer("scale", torch.ones(shape, dtype=torch.bfloat16, device=device))
        self.register_buffer("offset", torch.zeros(shape, dtype=torch.bfloat16, device=device))

    def take_rows(self, start: int, rows: Float[Tensor, "rows inputs"]) -> None:
        """Round some rows."""
        groups = _grouped(rows.float(), self.group)
        low, high = groups.aminmax(dim=-1, keepdim=True)
        offset = low.bfloat16()
        # Rounded up, so that the largest weight still has a code.
        scale = ((high - offset.float()).clamp_min(1e-12) / LAST_CODE * (1 + ROUNDING)).bfloat16()
        codes = ((groups - offset.float()) / scale.float()).round_().clamp_(0, LAST_CODE).to(torch.uint8)
        flat = codes.flatten(-2)
        here = slice(start, start + len(rows))
        self.codes[here] = flat[:, ::2] | flat[:, 1::2] << 4
        self.scale[here] = scale[..., 0]
        self.offset[here] = offset[..., 0]

    def rows_of_weight(self, start: int, stop: int) -> Float[Tensor, "rows inputs"]:
        """Widen some rows."""
        packed = self.codes[start:stop]
        codes = _grouped(torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2), self.group)
        scale, offset = (part[start:stop, :, None].to(self.dtype) for part in (self.scale, self.offset))
        return torch.addcmul(offset, codes.to(self.dtype), scale).flatten(-2)


def weight_error(weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """Bound how far the stored weight is from `weight`, element by element."""
    groups = _grouped(weight.float(), math.gcd(weight.shape[-1], GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    moved = low.abs() * ROUNDING
    step = (high - low + moved) / LAST_CODE * (1 + 2 * ROUNDING)
    bound: Tensor = (step / 2 + moved).expand_as(groups).flatten(-2)
    return bound


def _grouped(rows: Tensor, group: int) -> Tensor:
    return rows.reshape(len(rows), -1, group)
