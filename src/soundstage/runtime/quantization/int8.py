"""Eight-bit integers, one scale per row of the weight.

    code = round(w / scale)    scale = max |row| / 127

A weight is off by at most half a scale. Codes are widened for use, which every device can, and products are
scaled; or inputs are rounded likewise, a scale per token, and integers are multiplied, for which cards have
units, too, that have none for eight-bit floats.

Source: Dettmers et al. 2022, "LLM.int8()", arXiv 2208.07339, section 2, without its outliers.
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional as F

from soundstage.nn.linear import RoundedInput, RoundsInput
from soundstage.runtime.quantization.layer import QuantizedLinear

LARGEST = 127
LEAST_SCALE = 1e-12 / LARGEST
MULTIPLE = 8  # of rows and columns of a weight, and
FEWEST_ROWS = 17  # of the input, for the matrix units of a GPU
ROWS_AT_ONCE = 1024  # of the input that are in float32, which is larger than what they become


class Int8Linear(QuantizedLinear, RoundsInput):
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
        multiplies: bool = False,
    ) -> None:
        """Make an empty layer.

        Args:
            multiplies: Multiply eight-bit inputs and weights, instead of widening the weight first.
        """
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)
        self.multiplies = multiplies
        self.register_buffer("codes", torch.empty(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(out_features, 1, device=device))

    def take_rows(self, start: int, rows: Float[Tensor, "rows inputs"]) -> None:
        """Round some rows."""
        self.codes[start : start + len(rows)], self.scale[start : start + len(rows)] = round_rows(rows)

    def rows_of_weight(self, start: int, stop: int) -> Float[Tensor, "rows inputs"]:
        """Widen some rows."""
        return self.codes[start:stop].to(self.dtype).mul_(self.scale[start:stop])

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Multiply, as integers if asked to."""
        if self.multiplies:
            return self.multiply(self.round_input(x))
        if x.requires_grad or x.dtype == torch.float16:  # sums of codes are beyond it
            return super().forward(x)
        out = F.linear(x, self.codes.to(x.dtype))
        rows = out.view(-1, self.out_features)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            rows[part] = self._scale_(rows[part].float())
        return out

    @property
    def rounds(self) -> bool:
        """Whether inputs are rounded, too."""
        return self.multiplies

    def rounds_like(self, other: RoundsInput) -> bool:
        """Tell whether another layer rounds alike: all do, each token by its own scale."""
        return isinstance(other, Int8Linear)

    def round_input(self, x: Float[Tensor, "... inputs"]) -> RoundedInput:
        """Round every token."""
        return RoundedInput(x, *round_rows(x.flatten(0, -2)))

    def multiply(self, x: RoundedInput) -> Float[Tensor, "... outputs"]:
        """Multiply integers, where the device can; else the same numbers in float32."""
        out = x.exact.new_empty(len(x.codes), self.out_features)
        for start in range(0, len(out), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            out[part] = self._scale_(_products(x.codes[part], self.codes).mul_(x.scale[part]))
        return out.view(*x.exact.shape[:-1], self.out_features)

    def _scale_(self, products: Float[Tensor, "rows outputs"]) -> Float[Tensor, "rows outputs"]:
        """Bring products with codes to what they stand for, in place, in float32."""
        out = products.mul_(self.scale[:, 0])
        return out if self.bias is None else out.add_(self.bias.detach())


def round_rows(rows: Float[Tensor, "rows columns"]) -> tuple[Int8[Tensor, "rows columns"], Tensor]:
    """Round to integers, every row by its own scale, (rows, 1) in float32."""
    exact = rows.float()
    scale = (exact.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(LEAST_SCALE)
    return (exact / scale).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scale


def weight_error(weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
    """Bound how far the stored weight is from `weight`, element by element."""
    return (weight.float().abs().amax(-1, keepdim=True) / LARGEST / 2).expand_as(weight)


def _products(
    x: Int8[Tensor, "rows inputs"], weight: Int8[Tensor, "outputs inputs"]
) -> Float[Tensor, "rows outputs"]:
    """Multiply codes, with the device's units for integers where these take the sizes."""
    if x.device.type == "cuda" and (
        len(x) < FEWEST_ROWS or weight.shape[0] % MULTIPLE or weight.shape[1] % MULTIPLE
    ):
        return F.linear(x.float(), weight.float())
    return torch._int_mm(x, weight.t()).float()
