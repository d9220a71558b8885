"""How the noise level steers the network: adaLN-single.

One network per purpose turns a noise level into rows of shifts, scales and gates shared by all blocks; every
block adds its own learned table to them. Tokens share few distinct levels (often one), so the networks run
once per level, and the fused steps look a token's rows up where they use them.

    noise level -> sinusoid -> h = Linear(SiLU(Linear)) -> Linear(SiLU(h)) = rows; rows + a block's table

Source: PixArt-alpha, arXiv 2310.00426, section 2.3 (adaLN-single); DiT, arXiv 2212.09748 (adaLN-zero start).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.types import BatchSigma, Timesteps
from soundstage.models.transformer.picking import of_items
from soundstage.nn.embeddings import TimestepEmbedder
from soundstage.nn.kernels.choice import TORCH, Kernels
from soundstage.nn.kernels.lookup import Lookup, PerToken, TokenRows
from soundstage.nn.kernels.plain import scale_shift
from soundstage.nn.linear import project

# Rows of a stream's table, each (shift, scale, gate).
SELF_ATTENTION, FEED_FORWARD, TEXT_ATTENTION = slice(0, 3), slice(3, 6), slice(6, 9)
# Rows of a cross-modal table, each (scale, shift): mind the order; then the gate of what the stream hears.
A2V, V2A, ACROSS, GATE = slice(0, 2), slice(2, 4), slice(0, 4), slice(4, 5)
ALL = slice(None)
MOST_LEVELS = 8  # noise levels up to which the tables of all blocks are added at once


class NoiseLevels(NamedTuple):
    """The distinct noise levels of a batch of tokens, and where each token finds its own."""

    values: Float[Tensor, " levels"]
    lookup: Lookup | None  # None: one level per batch item, shared by its tokens

    @classmethod
    def of_tokens(cls, timesteps: Timesteps) -> "NoiseLevels":
        """Find the distinct levels of tokens."""
        if bool((timesteps == timesteps[:, :1]).all()):
            return cls(timesteps[:, 0], None)
        values, row_of = torch.unique(timesteps, return_inverse=True)
        return cls(values, Lookup(row_of, None) if torch.is_grad_enabled() else Lookup.of(row_of))

    @classmethod
    def of_items(cls, sigma: BatchSigma) -> "NoiseLevels":
        """Take one level per batch item; a single one where `sigma` is one expanded over the batch."""
        return cls(sigma[:1] if sigma.stride(0) == 0 else sigma, None)


class Modulation(NamedTuple):
    """Rows of shifts, scales and gates per noise level."""

    values: Float[Tensor, "levels k d"]
    lookup: Lookup | None
    sums: Mapping[int, tuple[Tensor, Tensor]] | None = None  # a table and it added, by the table's identity

    def plus(self, table: Float[Tensor, "rows d"], part: slice = ALL) -> "Modulation":
        """Add some rows of a table, stored in any dtype; at once, for one small operation instead of many."""
        known = None if self.sums is None else self.sums.get(id(table))
        if known is not None and known[0] is table:
            return Modulation(known[1], self.lookup)
        return Modulation(table[part].to(self.values.dtype) + self.values, self.lookup)

    def plus_all(self, tables: Sequence[Tensor | None], part: slice = ALL) -> "Modulation":
        """Add the tables of all blocks in one operation, of which `plus` with one of them then gives its own.

        The numbers are the same. Where they would take much memory, want gradients or do not lie together,
        nothing is done and `plus` adds.
        """
        if torch.is_grad_enabled() or len(self.values) > MOST_LEVELS:
            return self
        there = [table for table in tables if table is not None]
        kinds = {(type(t), t.dtype, t.device, t.shape) for t in there}
        if len(there) != len(tables) or len(kinds) != 1 or not _is_usual(there[0], self.values):
            return self
        added = torch.stack([table[part] for table in there]).to(self.values.dtype)[:, None] + self.values
        return self._replace(
            sums={id(table): (table, own) for table, own in zip(there, added.unbind(), strict=True)}
        )

    def spread(self, part: slice = ALL, items: Sequence[int] | None = None) -> list[PerToken]:
        """Spread the rows of `part` over the tokens: (b, 1, d) if an item has one level, else looked up.

        Args:
            items: Batch items to spread over, in this order; all of them when absent.
        """
        rows, lookup = self.values[:, part], self.lookup
        if lookup is not None:
            lookup = lookup if items is None else _lookup_of_items(lookup, items)
            return [TokenRows(row, lookup) for row in rows.unbind(1)]
        levels = rows.unsqueeze(2).unbind(1)
        return [*levels] if items is None else [of_items(row, items) for row in levels]


def _is_usual(table: Tensor, values: Tensor) -> bool:
    """Tell whether a table is an ordinary tensor where the values are, not spread over devices."""
    return type(table) in (Tensor, nn.Parameter) and table.device == values.device


def rows_of_items(rows: Tensor | TokenRows, items: Sequence[int]) -> Tensor | TokenRows:
    """Spread rows per item, or those that all items share, over rows of these items; see `of_items`."""
    if isinstance(rows, TokenRows):
        return TokenRows(rows.table, _lookup_of_items(rows.lookup, items))
    return of_items(rows, items)


def _lookup_of_items(lookup: Lookup, items: Sequence[int]) -> Lookup:
    row_of, runs = of_items(lookup.row_of, items), lookup.runs
    if row_of is lookup.row_of:
        return lookup
    return Lookup(row_of, None if runs is None else tuple(runs[item] for item in items))


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
        rows = project(self.linear, F.silu(embedded)).view(len(embedded), -1, embedded.shape[-1])
        return Modulation(rows, levels.lookup), Modulation(embedded.unsqueeze(1), levels.lookup)


def gated_residual(
    x: Float[Tensor, "b n d"],
    heard: Float[Tensor, "b n d"],
    gate: PerToken | None = None,
    kernels: Kernels = TORCH,
) -> Float[Tensor, "b n d"]:
    """Add what a layer says, gated: in place where no gradient is wanted, else in a new tensor."""
    in_place = not torch.is_grad_enabled()
    if gate is None:
        return x.add_(heard) if in_place else x + heard
    return kernels.gate_add(x, gate, heard, in_place=in_place)


def modulate(x: Float[Tensor, "b n d"], *, scale: PerToken, shift: PerToken) -> Float[Tensor, "b n d"]:
    """Scale around one and shift."""
    return scale_shift(x, scale, shift)


def new_table(num_rows: int, dim: int) -> nn.Parameter:
    """Make a block's own rows, zero to begin with."""
    return nn.Parameter(torch.zeros(num_rows, dim))
