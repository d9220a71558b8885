"""Rows of stacked tensors: taking some, and spreading a row per item over rows of several passes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def take(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Take rows of a tensor; a view where they follow each other, and the tensor itself where that is all."""
    if tuple(rows) == tuple(range(x.shape[0])):
        return x
    runs = [x[start:stop] for start, stop in runs_of(rows)]
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def of_items(x: Tensor, items: Sequence[int]) -> Tensor:
    """Spread a tensor with a row per item, or one row for all of them, over rows of these items."""
    return x if x.shape[0] == 1 else take(x, items)


def runs_of(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Find stretches of rows that follow each other, as [start, stop)."""
    start = stop = rows[0]
    for row in rows:
        if row != stop:
            yield start, stop
            start = row
        stop = row + 1
    yield start, stop
