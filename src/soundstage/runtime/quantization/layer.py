"""What all quantised layers share: a weight that is stored in another form than it is used in."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class QuantizedLinear(nn.Module, ABC):
    """A linear layer that stores codes; a format says how rows become codes and codes become a weight.

    It is no `nn.Linear`, so that code which reads a weight by itself does not mistake codes for one. A row is
    coded by itself, so that a weight can be taken a few rows at a time, straight from a file.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        """Make the bias; formats add their codes.

        Args:
            dtype: Of the weight when it is used, and of the bias.
        """
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        empty = torch.zeros(out_features, dtype=dtype, device=device) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty, requires_grad=False)

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weight that the codes stand for, made now."""
        return self.rows_of_weight(0, self.out_features)

    @abstractmethod
    def take_rows(self, start: int, rows: Float[Tensor, "rows inputs"]) -> None:
        """Replace some rows of the weight by what is nearest to them."""

    @abstractmethod
    def rows_of_weight(self, start: int, stop: int) -> Float[Tensor, "rows inputs"]:
        """Return some rows of the weight that the codes stand for.

        Scales are taken as they are: rounded to the type of the weight first, each would move its whole row,
        or its whole weight, by up to 1/512.
        """

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Multiply by the weight, in the numbers of `x`."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        """Say the size."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
