"""How the noise level steers the network: adaLN-single.

One network per purpose turns a noise level into rows of shifts, scales and gates shared by all blocks; every
block adds its own learned table to them. Tokens share few distinct levels (often one), so the networks run
once per level, and rows are spread over the tokens only where they are used.

    noise level -> sinusoid -> h = Linear(SiLU(Linear)) -> Linear(SiLU(h)) = rows; rows + a block's table

Source: PixArt-alpha, arXiv 2310.00426, section 2.3 (adaLN-single); DiT, arXiv 2212.09748 (adaLN-zero start).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.types import BatchSigma, Timesteps
from soundstage.nn.embeddings import TimestepEmbedder

# Rows of a stream's table, each (shift, scale, gate).
SELF_ATTENTION, FEED_FORWARD, TEXT_ATTENTION = slice(0, 3), slice(3, 6), slice(6, 9)
# Rows of a cross-modal table, each (scale, shift): mind the order; then the gate of what the stream hears.
A2V, V2A, GATE = slice(0, 2), slice(2, 4), slice(4, 5)
ALL = slice(None)


class NoiseLevels(NamedTuple):
    """The distinct noise levels of a batch of tokens, and where each token finds its own."""

    values: Float[Tensor, " levels"]
    lookup: Int[Tensor, "b n"] | None  # None: one level per batch item, shared by its tokens

    @classmethod
    def of_tokens(cls, timesteps: Timesteps) -> "NoiseLevels":
        """Find the distinct levels of tokens."""
        if bool((timesteps == timesteps[:, :1]).all()):
            return cls(timesteps[:, 0], None)
        return cls(*torch.unique(timesteps, return_inverse=True))

    @classmethod
    def of_items(cls, sigma: BatchSigma) -> "NoiseLevels":
        """Take one level per batch item."""
        return cls(sigma, None)


class Modulation(NamedTuple):
    """Rows of shifts, scales and gates per noise level."""

    values: Float[Tensor, "levels k d"]
    lookup: Int[Tensor, "b n"] | None

    def rows(self, table: Float[Tensor, "k d"], part: slice = ALL) -> list[Tensor]:
        """Add a table, stored in any dtype, and spread the rows of `part` over the tokens, (b, n or 1, d)."""
        rows = (table[part].to(self.values.dtype) + self.values[:, part]).unbind(1)
        if self.lookup is None:
            return [row.unsqueeze(1) for row in rows]
        return [row[self.lookup] for row in rows]


class AdaLNSingle(nn.Module):
    """Turn noise levels into rows of modulation; they start at zero, so that every gated layer is silent."""

    def __init__(self, dim: int, num_rows: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(dim)})
        self.linear = nn.Linear(dim, num_rows * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, levels: NoiseLevels, scale: float, dtype: torch.dtype) -> tuple[Modulation, Modulation]:
        """Return the rows, and the embedded level itself as a single row for the output layer."""
        embedded: Tensor = self.emb["timestep_embedder"](levels.values.float() * scale, dtype)
        rows = self.linear(F.silu(embedded)).view(len(embedded), -1, embedded.shape[-1])
        return Modulation(rows, levels.lookup), Modulation(embedded.unsqueeze(1), levels.lookup)


def modulate(
    x: Float[Tensor, "b n d"], *, scale: Float[Tensor, "#b #n d"], shift: Float[Tensor, "#b #n d"]
) -> Float[Tensor, "b n d"]:
    """Scale around one and shift."""
    return torch.addcmul(shift, x, 1 + scale)


def new_table(num_rows: int, dim: int) -> nn.Parameter:
    """Make a block's own rows, zero to begin with."""
    return nn.Parameter(torch.zeros(num_rows, dim))
