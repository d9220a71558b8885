"""Low-rank additions to linear layers, added into a weight or computed beside it.

    LoRA   Δ = P              P = (alpha / rank) up down
    DoRA   Δ = g (W + P) - W  g = m / |W + P|, one per output: the new rows have the lengths m

A layer with several of them computes with W + Σ strength Δ. Every Δ is taken from the untouched W, so that
their order does not matter and strength 0 is no change.

Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; DoRA: Liu et al. 2024, arXiv 2402.09353, equation 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """What one LoRA adds to one layer at strength 1."""

    down: Float[Tensor, "rank inputs"]
    up: Float[Tensor, "outputs rank"]
    scale: float = 1.0  # alpha / rank
    magnitude: Float[Tensor, " outputs"] | None = None  # DoRA: length of every row of the new weight

    def product(self) -> Float[Tensor, "outputs inputs"]:
        """Multiply the two factors, in float32."""
        return (self.up.float() @ self.down.float()).mul_(self.scale)

    def delta(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """Return what is added to `weight`, in float32."""
        product = self.product()
        if self.magnitude is None:
            return product
        moved = weight.float() + product
        return self._row_gain(self.magnitude, moved) * moved - weight.float()

    def gain(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs 1"]:
        """Return the factor from the moved rows to rows of the wanted length, in float32; 1 without DoRA."""
        if self.magnitude is None:
            return torch.ones(len(self.up), 1, device=self.up.device)
        return self._row_gain(self.magnitude, weight.float() + self.product())

    @staticmethod
    def _row_gain(magnitude: Tensor, moved: Tensor) -> Tensor:
        lengths = moved.norm(dim=1, keepdim=True)
        gain: Tensor = magnitude.float()[:, None] / lengths.clamp_min(torch.finfo(torch.float32).tiny)
        return gain


@dataclass(frozen=True)
class Addition:
    """A low-rank addition at a strength."""

    low_rank: LowRank
    strength: float


def fuse(
    weight: Float[Tensor, "outputs inputs"], additions: Sequence[Addition]
) -> Float[Tensor, "outputs inputs"]:
    """Add to a weight: summed in float32 and rounded once, to the weight's own type.

    Small additions to a bfloat16 weight would vanish if each were rounded. On a full device every temporary
    counts: of a LoRA there are the sum and one product.
    """
    total = weight.to(torch.float32, copy=True)
    for addition in additions:
        if addition.strength:
            total.add_(addition.low_rank.delta(weight), alpha=addition.strength)
    return total.to(weight.dtype)


@runtime_checkable
class AnyLinear(Protocol):
    """A linear layer, however it stores its weight."""

    in_features: int
    out_features: int

    @property
    def weight(self) -> Tensor:
        """The weight."""

    @property
    def bias(self) -> Tensor | None:
        """The bias."""

    def __call__(self, x: Tensor, /) -> Any:
        """Project."""


class LoraLinear(nn.Module):
    """A linear layer with low-rank branches beside it: its twin for as long as they are wanted.

    The layer itself is not touched, so that taking its place and giving it back costs nothing. Additions of
    strength 0 are left out. Several are laid side by side and cost two multiplications together.
    """

    down: Tensor | None  # (ranks, inputs)
    up: Tensor | None  # (outputs, ranks); strength, scale and gain are multiplied in
    own: Tensor | None  # (outputs); DoRA: what is added of the layer's own output, without its bias

    def __init__(
        self, base: AnyLinear, additions: Sequence[Addition], dtype: torch.dtype | None = None
    ) -> None:
        """Put branches beside a layer.

        Args:
            additions: Their factors are where the layer is.
            dtype: Of the branches; that of the weight when absent, for which it is looked at.
        """
        super().__init__()
        self.base = base
        wanted = [addition for addition in additions if addition.strength]
        down, up, own = _side_by_side(base, wanted) if wanted else (None, None, None)
        dtype = base.weight.dtype if dtype is None else dtype
        for name, value in (("down", down), ("up", up), ("own", own)):
            self.register_buffer(name, None if value is None else value.to(dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The layer's own weight, without additions."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's own bias."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.base.out_features

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Project, then add what the branches say."""
        out: Tensor = self.base(x)
        if self.down is None or self.up is None:
            return out
        side = F.linear(F.linear(x, self.down), self.up)
        if self.own is not None:
            side = side + self.own * (out if self.bias is None else out - self.bias)
        return out + side


def _side_by_side(base: AnyLinear, additions: Sequence[Addition]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Join additions: W x + Σ strength Δ x = (1 + own) W x + up down x, with g the gain of each.

    Of DoRA, Δ x = g (W x + scale up down x) - W x. Only for that is the weight looked at, which may be on
    disk, or have to be made of codes.
    """
    has_own = any(addition.low_rank.magnitude is not None for addition in additions)
    weight = base.weight if has_own else None
    downs, ups, owns = [], [], []
    for addition in additions:
        low_rank, factor = addition.low_rank, addition.strength * addition.low_rank.scale
        up = factor * low_rank.up.float()
        if weight is not None:
            gain = low_rank.gain(weight)
            up = gain * up
            owns.append(addition.strength * (gain[:, 0] - 1))
        downs.append(low_rank.down.float())
        ups.append(up)
    return torch.cat(downs), torch.cat(ups, dim=1), torch.stack(owns).sum(0) if owns else None
