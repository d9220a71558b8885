"""Which rows of the stacked tokens stand for which passes, and which rows a layer can take together.

Passes of guidance start from the same tokens and part where something is first done to them differently. A
row stands for all passes that have not parted yet, so that what they share is computed once:

    block 0     self-attention    | all passes                        |     1 row
                text              | uncond | cond, perturbed, isolated |    2
                other stream      | uncond | cond, perturbed | isolated |   3
    block 29    self-attention    | uncond | cond | perturbed | isolated |  4

Nothing here is a tensor on a device: what is done to which row is known before the network runs.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from soundstage.models.transformer.modulation import gated_residual, rows_of_items
from soundstage.models.transformer.picking import runs_of
from soundstage.nn.kernels.choice import TORCH, Kernels
from soundstage.nn.kernels.lookup import PerToken


class Row(NamedTuple):
    """One row of the stacked tokens."""

    item: int  # of the input
    passes: tuple[int, ...]  # it stands for


class Part(NamedTuple):
    """Rows that a layer takes together, because it treats them alike."""

    key: Hashable  # how it treats them
    rows: tuple[int, ...]  # ascending
    items: tuple[int, ...]  # of the input, row by row


@dataclass(frozen=True)
class Rows:
    """All rows in their order: pass by pass, item by item."""

    rows: tuple[Row, ...]
    at_once: int | None = None  # rows that a layer takes together at most; None = no limit

    @classmethod
    def of_items(cls, num_items: int) -> "Rows":
        """Make a row of every item, each a pass of its own."""
        return cls(tuple(Row(item, (item,)) for item in range(num_items)))

    @classmethod
    def shared(cls, num_items: int, num_passes: int, at_once: int | None = None) -> "Rows":
        """Let one row per item stand for all passes."""
        return cls(tuple(Row(item, tuple(range(num_passes))) for item in range(num_items)), at_once)

    def part(self, key: Callable[[int], Hashable]) -> tuple["Rows", tuple[int, ...]]:
        """Let passes part that are treated differently from here on.

        Args:
            key: From a pass to how it is treated.

        Returns:
            The new rows, and of each the old one that it continues.
        """
        if all(len(row.passes) == 1 for row in self.rows):
            return self, tuple(range(len(self.rows)))
        parted = []
        for index, row in enumerate(self.rows):
            groups: dict[Hashable, list[int]] = {}
            for number in row.passes:
                groups.setdefault(key(number), []).append(number)
            parted += [(Row(row.item, tuple(group)), index) for group in groups.values()]
        parted.sort(key=lambda entry: (entry[0].passes[0], entry[0].item))
        return Rows(tuple(row for row, _ in parted), self.at_once), tuple(index for _, index in parted)

    def parts(self, key: Callable[[int], Hashable]) -> list[Part]:
        """Sort rows by how a layer treats them; the passes of one row are treated alike."""
        groups: dict[Hashable, list[int]] = {}
        for index, row in enumerate(self.rows):
            groups.setdefault(key(row.passes[0]), []).append(index)
        return [
            Part(name, tuple(some), tuple(self.rows[index].item for index in some))
            for name, group in groups.items()
            for some in _in_portions(group, self.at_once)
        ]

    def all(self) -> list[Part]:
        """Return the parts of a layer that treats all rows alike."""
        return self.parts(lambda _: None)

    def of_pass(self, number: int) -> tuple[int, ...]:
        """Return the rows that stand for a pass, item by item."""
        found = [(row.item, index) for index, row in enumerate(self.rows) if number in row.passes]
        return tuple(index for _, index in sorted(found))


def add(
    x: Tensor, rows: Sequence[int], heard: Tensor, gate: PerToken | None = None, kernels: Kernels = TORCH
) -> Tensor:
    """Add what a layer says of some rows; in place where no gradient is wanted, else in a new tensor."""
    if len(rows) == x.shape[0]:
        return gated_residual(x, heard, gate, kernels)
    pieces, done, place = [], 0, 0
    for start, stop in runs_of(rows):
        own = slice(place, place + stop - start)
        gate_here = None if gate is None else rows_of_items(gate, range(own.start, own.stop))
        pieces += [x[done:start], gated_residual(x[start:stop], heard[own], gate_here, kernels)]
        done, place = stop, own.stop
    return torch.cat([*pieces, x[done:]]) if torch.is_grad_enabled() else x


def _in_portions(rows: Sequence[int], at_once: int | None) -> Iterator[Sequence[int]]:
    size = at_once or len(rows)
    return (rows[start : start + size] for start in range(0, len(rows), size))
