"""How strongly tokens attend to each other or to the words of a text, when conditioning limits it.

A weight w in [0, 1] multiplies a token's share in the softmax, so it enters the scores as ln(w). A dense
table of n x n weights is fine for small n; at real sizes (14,080 tokens and more) weights are kept as a few
row and column factors. From these, attention is cut into parts once for all layers, steps and passes of a
run: see `AttentionParts`. The table stays the reference in the tests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from soundstage.models.transformer.picking import of_items
from soundstage.nn.attention_parts import AttentionParts, Bias, Part, Ranges

DenseAttentionWeights = Float[Tensor, "#b n m"]

LEAST = 32  # queries that are worth a call of their own; measured, see docs/experiments.md
HELD = 2**20  # entries of all biases with a row per query up to which they are held, not made when used


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

    def parts(self, dtype: torch.dtype) -> AttentionParts | None:
        """Cut attention into parts that see the same keys; None where every token sees every other alike.

        This looks at values, which waits for the device: to be done once for all steps.

        Args:
            dtype: Of the tokens.
        """
        device = self.rows.device
        factors = replace(self, rows=self.rows.float().cpu(), columns=self.columns.float().cpu())
        drafts = [_Draft.of(factors, *stretch) for stretch in _stretches(factors)]
        if all(draft.is_unlimited for draft in drafts):
            return None
        is_held = sum(draft.num_entries for draft in drafts) <= HELD
        return AttentionParts(parts=tuple(draft.part(dtype, device, is_held) for draft in drafts))


@dataclass(frozen=True, kw_only=True)
class StripBias:
    """One part's bias, made when it is used; keys that count alike for all its queries share a column."""

    factors: FactoredAttentionWeights  # of the part's queries, and of each kind of key
    kind_of: Int[Tensor, " s"]  # of each key that the part sees
    dtype: torch.dtype

    def make(self) -> Float[Tensor, "#b 1 n s"]:
        """Multiply out and spread over the keys."""
        bias = _log_weights(self.factors.weights(), self.dtype)
        return bias.index_select(-1, self.kind_of).unsqueeze(1)


class _Draft(NamedTuple):
    """A part before it is known how its bias is kept."""

    start: int
    stop: int
    rows: Float[Tensor, "b r n"]  # of the queries, or of one if all are alike; without factors that are zero
    columns: Float[Tensor, "b r kinds"]  # of the stretches of keys that it sees
    lengths: Int[Tensor, " kinds"]  # of these stretches
    keys: Ranges | None
    is_alike: bool  # every query sees all of these keys with the same weight

    @classmethod
    def of(cls, factors: FactoredAttentionWeights, start: int, stop: int) -> "_Draft":
        """Find which keys some queries see, and which of them they see alike."""
        rows = factors.rows[..., start:stop]
        if bool((rows == rows[..., :1]).all()):
            rows = rows[..., :1]
        active = (rows != 0).any(0).any(-1)
        rows = rows[:, active]
        columns, lengths = _runs(factors.columns[:, active])
        weights = torch.einsum("brq,brk->bqk", rows, columns)
        seen = (weights > 0).any(0).any(0)  # (kinds)
        blind = (weights <= 0).all(-1).any()  # a query that sees nothing attends to everything equally
        if blind:
            seen[:] = True
        ends = lengths.cumsum(0).tolist()
        ranges = zip(pairwise([0, *ends]), seen.tolist(), strict=True)
        keys = _joined([(first, last) for (first, last), is_seen in ranges if is_seen])
        weights = weights[..., seen]
        return cls(
            start,
            stop,
            rows,
            columns[..., seen],
            lengths[seen],
            None if keys == ((0, ends[-1]),) else keys,
            not blind and bool((weights == weights[..., :1]).all()),
        )

    @property
    def is_unlimited(self) -> bool:
        return self.keys is None and self.is_alike

    @property
    def num_entries(self) -> int:
        """Entries of its bias, if that has a row per query."""
        several = not self.is_alike and self.rows.shape[-1] > 1
        items = max(len(self.rows), len(self.columns))
        return items * self.rows.shape[-1] * int(self.lengths.sum()) if several else 0

    def part(self, dtype: torch.dtype, device: torch.device, is_held: bool) -> Part:
        """Make the part; what is the same for all its queries is always held."""
        bias: Bias | None = None
        if not self.is_alike:
            kind_of = torch.arange(len(self.lengths)).repeat_interleave(self.lengths).to(device)
            factors = FactoredAttentionWeights(rows=self.rows.to(device), columns=self.columns.to(device))
            bias = StripBias(factors=factors, kind_of=kind_of, dtype=dtype)
            if is_held or not self.num_entries:
                bias = bias.make()
        return Part(start=self.start, stop=self.stop, keys=self.keys, bias=bias)


def cut_up(
    weights: FactoredAttentionWeights | AttentionParts | None, dtype: torch.dtype
) -> AttentionParts | None:
    """Cut attention into parts, unless it is already."""
    return weights.parts(dtype) if isinstance(weights, FactoredAttentionWeights) else weights


def weights_to_bias(
    weights: DenseAttentionWeights | FactoredAttentionWeights | AttentionParts | None, dtype: torch.dtype
) -> Float[Tensor, "#b 1 n m"] | AttentionParts | None:
    """Turn weights into what attention takes."""
    if isinstance(weights, Tensor):
        return _log_weights(weights, dtype).unsqueeze(1)
    return cut_up(weights, dtype)


def spread_parts(parts: AttentionParts, items: Sequence[int]) -> AttentionParts:
    """Spread over rows of these batch items."""

    def spread(bias: Bias) -> Bias:
        if isinstance(bias, Tensor):
            return of_items(bias, items)
        assert isinstance(bias, StripBias)
        rows, columns = (of_items(part, items) for part in (bias.factors.rows, bias.factors.columns))
        return replace(bias, factors=replace(bias.factors, rows=rows, columns=columns))

    return parts.with_biases(spread)


def _stretches(factors: FactoredAttentionWeights) -> Iterator[tuple[int, int]]:
    """Cut the queries where their weights change; short stretches side by side stay together up to a tile."""
    start = stop = 0
    for length in _runs(factors.rows)[1].tolist():
        if stop > start and (length >= LEAST or stop + length - start > factors.tile_size):
            yield start, stop
            start = stop
        stop += length
        if length >= LEAST:
            yield start, stop
            start = stop
    if stop > start:
        yield start, stop


def _runs(x: Float[Tensor, "b r n"]) -> tuple[Float[Tensor, "b r runs"], Int[Tensor, " runs"]]:
    """Find tokens that follow each other and are the same in every row: their values, and how many each."""
    n = x.shape[-1]
    if x.shape[1] == 0:
        return x[..., :1], torch.tensor([n])
    differs = (x[..., 1:] != x[..., :-1]).flatten(0, 1).any(0)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), differs.nonzero()[:, 0] + 1])
    return x[..., starts], torch.diff(starts, append=torch.tensor([n]))


def _joined(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Join ranges that touch."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            start, _ = joined.pop()
        joined.append((start, stop))
    return tuple(joined)


def _log_weights(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Take the logarithm; zero becomes the lowest finite number, so that a fully masked row stays finite."""
    weights = weights.float()
    logs = weights.clamp(min=torch.finfo(torch.float32).tiny).log()
    return logs.masked_fill(weights <= 0, torch.finfo(dtype).min).to(dtype)
