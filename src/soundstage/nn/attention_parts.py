"""Attention in which not every token may attend to every other, or not as strongly as to the rest.

Tokens that are limited alike follow each other as a rule: those of a moment, those of a reference clip. Each
such stretch of queries is a part, and attends to the keys that it sees and to no others:

    keys      | prompt 1 | prompt 2 |
    queries 1 |    x     |          |   no bias: kernels that take none can run
    queries 2 |    x     |    x     |   a bias only where the keys count differently
    queries 3 |          |    x     |

Where a key counts nothing it is left out, which is the same as a share of zero.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.attention_backends import AttentionBackend

Ranges = tuple[tuple[int, int], ...]  # [start, stop) of each


@runtime_checkable
class MadeBias(Protocol):
    """A bias that is made when it is used, because all of them together would be too large to hold."""

    def make(self) -> Float[Tensor, "#b 1 n s"]:
        """Make it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """Queries that follow each other, and what they see."""

    start: int
    stop: int
    keys: Ranges | None = None  # None: all
    bias: Float[Tensor, "#b 1 #n s"] | MadeBias | None = None  # of the keys that are seen

    def made_bias(self) -> Float[Tensor, "#b 1 #n s"] | None:
        """Return its bias, made now if it is not held."""
        return self.bias if self.bias is None or isinstance(self.bias, Tensor) else self.bias.make()

    def within(self, queries: slice, keys: slice) -> "Part | None":
        """Return what is left among some queries and some keys, counted from the first of each.

        None where no query is left. Where no key is, `keys` is empty.
        """
        start, stop = max(self.start, queries.start), min(self.stop, queries.stop)
        if start >= stop:
            return None
        ranges, columns = list[tuple[int, int]](), list[int]()  # columns: of the bias, from first to last
        passed = 0
        for first, last in ((keys.start, keys.stop),) if self.keys is None else self.keys:
            low, high = max(first, keys.start), min(last, keys.stop)
            if low < high:
                ranges.append((low - keys.start, high - keys.start))
                columns += [passed + low - first, passed + high - first]
            passed += last - first
        bias = self.made_bias()
        if bias is not None and columns:
            shown = keys if self.keys is None else slice(columns[0], columns[-1])
            rows = slice(None) if bias.shape[-2] == 1 else slice(start - self.start, stop - self.start)
            bias = bias[..., rows, shown]
        return Part(
            start=start - queries.start,
            stop=stop - queries.start,
            keys=None if self.keys is None else tuple(ranges),
            bias=bias if columns else None,
        )


@dataclass(frozen=True, kw_only=True)
class AttentionParts:
    """Who attends to whom: parts that follow each other and hold every query."""

    parts: tuple[Part, ...]

    def with_biases(self, change: "Callable[[Bias], Bias]") -> "AttentionParts":
        """Return the same with other biases."""
        return replace(
            self,
            parts=tuple(
                part if part.bias is None else replace(part, bias=change(part.bias)) for part in self.parts
            ),
        )

    def attend(
        self, backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor
    ) -> Iterator[Float[Tensor, "b heads n d"]]:
        """Attend part by part, in the order of the queries.

        Args:
            q: (b, heads, n, d).
            k: (b, heads, s, d).
            v: (b, heads, s, d).
        """
        ranges, seen = None, (k, v)
        for part in self.parts:
            if part.keys != ranges:
                ranges, seen = part.keys, (pick(k, part.keys), pick(v, part.keys))
            yield backend.attend(q[..., part.start : part.stop, :], *seen, part.made_bias())


Bias = Tensor | MadeBias


def pick(x: Tensor, ranges: Ranges | None) -> Tensor:
    """Take the tokens of some ranges; a view where there is one."""
    if ranges is None:
        return x
    some = [x[..., start:stop, :] for start, stop in ranges]
    return some[0] if len(some) == 1 else torch.cat(some, dim=-2)
