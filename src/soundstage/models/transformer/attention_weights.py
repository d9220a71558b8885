"""How strongly tokens attend to each other or to the words of a text, when conditioning limits it.

A weight w in [0, 1] multiplies a token's share in the softmax, so it enters the scores as ln(w). A dense
table of n x n weights is fine for small n; at real sizes (14,080 tokens and more) weights are kept as a few
row and column factors, and attention reads them a strip of queries at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from soundstage.models.transformer.picking import of_items

DenseAttentionWeights = Float[Tensor, "#b n n"]


@dataclass(frozen=True, kw_only=True)
class FactoredAttentionWeights:
    """Weights as row and column factors: w[i, j] = sum over r of rows[r, i] * columns[r, j], in [0, 1]."""

    rows: Float[Tensor, "#b r n"]  # queries
    columns: Float[Tensor, "#b r m"]  # keys
    tile_size: int = 1024  # queries whose weights exist at once

    @classmethod
    def from_groups(
        cls, groups: Int[Tensor, " n"], between: Float[Tensor, "groups groups"]
    ) -> "FactoredAttentionWeights":
        """Build a block mask: the weight from token i to j is `between[groups[i], groups[j]]`."""
        members = F.one_hot(groups.long(), between.shape[0]).to(between).T  # (groups, n)
        return cls(rows=members[None], columns=(between @ members)[None])

    def weights(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "#b queries m"]:
        """Multiply out the weights of the queries from `start` to `stop`."""
        return torch.einsum("brq,brm->bqm", self.rows[..., start:stop].float(), self.columns.float())


@dataclass(frozen=True)
class FactoredBias:
    """The scores' bias of factored weights, a `TiledBias`."""

    factors: FactoredAttentionWeights
    dtype: torch.dtype

    @property
    def tile_size(self) -> int:
        """Queries whose bias exists at once."""
        return self.factors.tile_size

    def of_items(self, items: Sequence[int]) -> "FactoredBias":
        """Spread over rows of these batch items."""
        rows, columns = (of_items(part, items) for part in (self.factors.rows, self.factors.columns))
        return replace(self, factors=replace(self.factors, rows=rows, columns=columns))

    def tile(self, start: int, stop: int) -> Float[Tensor, "#b 1 queries m"]:
        """Bias of the queries from `start` to `stop` towards all tokens."""
        return _log_weights(self.factors.weights(start, stop), self.dtype).unsqueeze(1)


def weights_to_bias(
    weights: DenseAttentionWeights | FactoredAttentionWeights | None, dtype: torch.dtype
) -> Float[Tensor, "#b 1 n n"] | FactoredBias | None:
    """Turn weights into what attention adds to its scores."""
    if weights is None:
        return None
    if isinstance(weights, FactoredAttentionWeights):
        return FactoredBias(weights, dtype)
    return _log_weights(weights, dtype).unsqueeze(1)


def _log_weights(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Take the logarithm; zero becomes the lowest finite number, so that a fully masked row stays finite."""
    weights = weights.float()
    logs = weights.clamp(min=torch.finfo(torch.float32).tiny).log()
    return logs.masked_fill(weights <= 0, torch.finfo(dtype).min).to(dtype)
