"""Eight-bit integers, one scale per row of the weight; runs on every device, because it is widened for use.

    code = round(w / scale)    scale = max |row| / 127

A weight is off by at most half a scale.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.runtime.quantization.layer import QuantizedLinear

LARGEST = 127


class Int8Linear(QuantizedLinear):
    """A linear layer with an int8 weight."""

    codes: Tensor  # (outputs, inputs), int8
    scale: Tensor  # (outputs, 1), float32

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        """Make an empty layer."""
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)
        self.register_buffer("codes", torch.empty(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(out_features, 1, device=device))

    def take_rows(self, start: int, rows: Float[Tensor, "rows inputs"]) -> None:
        """Round some rows."""
        exact = rows.float()
        scale = exact.abs().amax(-1, keepdim=True).clamp_min(1e-12) / LARGEST
        self.codes[start : start + len(rows)] = (
            (exact / scale).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
        )
        self.scale[start : start + len(rows)] = scale

    def rows_of_weight(self, start: int, stop: int) -> Float[Tensor, "rows inputs"]:
        """Widen some rows."""
        return self.codes[start:stop].to(self.dtype).mul_(self.scale[start:stop])


def weight_error(weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """Bound how far the stored weight is from `weight`, element by element."""
    return (weight.float().abs().amax(-1, keepdim=True) / LARGEST / 2).expand_as(weight)
