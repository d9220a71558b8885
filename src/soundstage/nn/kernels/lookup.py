"""Rows that tokens share: a table of few rows, and which of them each token takes.

Noise levels are of that kind: a clip has one, a clip whose first frame is given has two. The fused steps look
rows up where they use them, so that nowhere a row per token exists.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST_RUNS = 8  # per item; a mask in space makes more, and its rows are spread in plain PyTorch


class Run(NamedTuple):
    """Tokens that follow each other and take the same row."""

    start: int
    stop: int
    row: int


class Lookup(NamedTuple):
    """Which row of a table each token takes."""

    row_of: Int[Tensor, "b n"]
    runs: tuple[tuple[Run, ...], ...] | None  # the same on the host, per item; None: too many, or unknown

    @classmethod
    def of(cls, row_of: Int[Tensor, "b n"]) -> "Lookup":
        """Find the runs, which waits for the device: to be done once for all steps."""
        begins = torch.ones_like(row_of, dtype=torch.bool)
        begins[:, 1:] = row_of[:, 1:] != row_of[:, :-1]
        if int(begins.sum()) > MOST_RUNS * len(row_of):
            return cls(row_of, None)
        runs: list[list[Run]] = [[] for _ in row_of]
        for (item, start), row in zip(begins.nonzero().tolist(), row_of[begins].tolist(), strict=True):
            if runs[item]:
                runs[item][-1] = runs[item][-1]._replace(stop=start)
            runs[item].append(Run(start, row_of.shape[1], row))
        return cls(row_of, tuple(tuple(some) for some in runs))


class TokenRows(NamedTuple):
    """A row per token, looked up in a table."""

    table: Float[Tensor, "rows d"]
    lookup: Lookup


PerToken = Float[Tensor, "#b #n d"] | TokenRows  # one row per token, or per item of the batch


def spread(rows: PerToken) -> Float[Tensor, "#b #n d"]:
    """Give every token a row of its own."""
    return rows.table[rows.lookup.row_of] if isinstance(rows, TokenRows) else rows


def shared_lookup(*rows: PerToken) -> Lookup | None:
    """Return the lookup that all of them have in common, if they have one."""
    first = rows[0]
    if not isinstance(first, TokenRows):
        return None
    is_shared = all(isinstance(one, TokenRows) and one.lookup is first.lookup for one in rows)
    return first.lookup if is_shared else None


def has_runs(*rows: PerToken) -> bool:
    """Tell whether to go over `in_runs` instead of spreading rows.

    Not with gradients or under `torch.compile`, which looks rows up inside the step by itself.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    lookup = shared_lookup(*rows)
    return lookup is not None and lookup.runs is not None


def in_runs(num_items: int, *rows: PerToken) -> Iterator[tuple[tuple[slice, slice], list[Tensor]]]:
    """Go over the runs: their items and tokens, and the row of each table that these take."""
    lookup = shared_lookup(*rows)
    assert lookup is not None
    assert lookup.runs is not None
    assert len(lookup.runs) in (1, num_items)
    tables = [one.table for one in rows if isinstance(one, TokenRows)]
    for item, runs in enumerate(lookup.runs):
        items = slice(None) if len(lookup.runs) == 1 else slice(item, item + 1)
        for start, stop, row in runs:
            yield (items, slice(start, stop)), [table[row] for table in tables]
