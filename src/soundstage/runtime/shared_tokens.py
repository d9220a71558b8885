"""Attention over the video tokens of several processes, of which each holds a share.

| exchange | what travels | number of processes |
|---|---|---|
| ulysses | tokens for heads: each gets all tokens of a part of the heads, and back | divides the heads |
| ring | keys and values, from each to the next, until everybody has seen all | any |

Neither changes anything but rounding: heads do not depend on each other, and softmax over parts of the keys
is put together exactly (see `nn/attention_merging.py`). Sound has few tokens: every process has all of them.

Sources: Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv 2309.14509, section 3; Liu et al. 2023, "Ring
Attention with Blockwise Transformers", arXiv 2310.01889, section 3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.models.transformer.model import AVTransformer
from soundstage.nn.attention import Attention, KeyValue
from soundstage.nn.attention_merging import Part, attend_to_part, hear_nothing, merge
from soundstage.nn.attention_parts import AttentionParts, Ranges, pick
from soundstage.runtime.distributed import Group


@runtime_checkable
class Exchange(Protocol):
    """One way for queries to reach the keys and values of all processes."""

    def among(
        self, attention: Attention, query: Tensor, keys_values: KeyValue, *, bias: Any = None
    ) -> Tensor:
        """Let the tokens of each process attend to those of all; every argument but `bias` is a share."""

    def toward(
        self, attention: Attention, query: Tensor, keys_values: KeyValue, *, bias: Any = None
    ) -> Tensor:
        """Let tokens that every process has attend to shared ones; all get the same, bit for bit."""


@dataclass(frozen=True)
class Ulysses:
    """Trade a share of the tokens for a share of the heads, and back."""

    group: Group
    lengths: Sequence[int]  # tokens of each process

    def among(
        self, attention: Attention, query: Tensor, keys_values: KeyValue, *, bias: Any = None
    ) -> Tensor:
        """Let tokens attend to tokens."""
        q, k, v = self._to_heads(query, keys_values.k, keys_values.v)
        return self._to_tokens(self._own_heads(attention, q, KeyValue(k, v), bias))

    def toward(
        self, attention: Attention, query: Tensor, keys_values: KeyValue, *, bias: Any = None
    ) -> Tensor:
        """Let tokens that every process has attend to shared ones."""
        k, v = self._to_heads(keys_values.k, keys_values.v)
        own = query.chunk(self.group.size, dim=-1)[self.group.rank]
        return self.group.gather(self._own_heads(attention, own, KeyValue(k, v), bias), dim=2)

    def _own_heads(self, attention: Attention, query: Tensor, keys_values: KeyValue, bias: Any) -> Tensor:
        """Attend with this process's heads: all tokens are there."""
        attention.heads //= self.group.size
        try:
            return Attention.mix(attention, query, keys_values, bias=bias)
        finally:
            attention.heads *= self.group.size

    def _to_heads(self, *parts: Tensor) -> list[Tensor]:
        """Trade, several tensors at once."""
        size, own = self.group.size, parts[0].shape[1]
        x = torch.stack([rearrange(part, "b n (p e) -> (p n) b e", p=size) for part in parts], dim=2)
        x = self.group.exchange(x, [own] * size, self.lengths)
        return [rearrange(part, "n b e -> b n e") for part in x.unbind(2)]

    def _to_tokens(self, x: Tensor) -> Tensor:
        """Trade back."""
        size, own = self.group.size, self.lengths[self.group.rank]
        x = self.group.exchange(rearrange(x, "b n e -> n b e"), self.lengths, [own] * size)
        return rearrange(x, "(p n) b e -> b n (p e)", p=size)


@dataclass(frozen=True)
class Ring:
    """Pass keys and values around; what has come is attended to while the next is on its way."""

    group: Group
    lengths: Sequence[int]  # tokens of each process

    def among(
        self, attention: Attention, query: Tensor, keys_values: KeyValue, *, bias: Any = None
    ) -> Tensor:
        """Let tokens attend to tokens."""
        size, rank = self.group.size, self.group.rank
        held, heard = torch.stack(keys_values), None
        for turn in range(size):
            source, before = (rank - turn) % size, (rank - turn - 1) % size
            if turn < size - 1:
                coming = held.new_empty(*held.shape[:2], self.lengths[before], held.shape[3])
                arrived = self.group.pass_on(held, coming)
            part = self._part(
                attention, query, KeyValue(*held), _Window(self._rows(rank), self._rows(source), bias)
            )
            heard = part if heard is None else merge(heard, part)
            if turn < size - 1:
                arrived()
                held = coming
        assert heard is not None
        return _tokens(heard, query)

    def toward(
        self, attention: Attention, query: Tensor, keys_values: KeyValue, *, bias: Any = None
    ) -> Tensor:
        """Let tokens that every process has attend to shared ones: here the few results travel."""
        everyone = slice(0, query.shape[1])
        window = _Window(everyone, self._rows(self.group.rank), bias)
        own = self._part(attention, query, keys_values, window)
        values = self.group.gather(own.values[None], dim=0)
        log_sums = self.group.gather(own.log_sums[None], dim=0)
        heard, *others = map(Part, values, log_sums)
        for part in others:  # by rank, so that rounding is the same everywhere
            heard = merge(heard, part)
        return _tokens(heard, query)

    def _part(self, attention: Attention, query: Tensor, keys_values: KeyValue, window: "_Window") -> Part:
        heads = attention.heads
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (query, *keys_values))
        strips = list[Part]()
        for start, stop, seen, bias in window.strips(q.shape[-2]):
            some = q[..., start:stop, :]
            sees = seen is None or len(seen) > 0
            strips.append(
                attend_to_part(some, pick(k, seen), pick(v, seen), bias) if sees else hear_nothing(some)
            )
        if len(strips) == 1:
            return strips[0]
        return Part(
            torch.cat([s.values for s in strips], dim=-2), torch.cat([s.log_sums for s in strips], dim=-1)
        )

    def _rows(self, rank: int) -> slice:
        """Tell where a process's tokens are among all."""
        first = sum(self.lengths[:rank])
        return slice(first, first + self.lengths[rank])


@dataclass(frozen=True)
class _Window:
    """A part of the bias of all queries towards all keys."""

    queries: slice
    keys: slice
    bias: Tensor | AttentionParts | None

    def strips(self, num_queries: int) -> Iterator[tuple[int, int, Ranges | None, Tensor | None]]:
        """Yield ranges of the own queries, the keys of the window that they see, and their bias."""
        bias = self.bias
        if bias is None:
            yield 0, num_queries, None, None
        elif isinstance(bias, Tensor):
            rows = bias if bias.shape[-2] == 1 else bias[..., self.queries, :]
            yield 0, num_queries, None, rows if rows.shape[-1] == 1 else rows[..., self.keys]
        else:
            for part in bias.parts:
                own = part.within(self.queries, self.keys)
                if own is not None:
                    yield own.start, own.stop, own.keys, own.made_bias()


def _tokens(heard: Part, query: Tensor) -> Tensor:
    """Put the heads side by side, in the numbers of the query."""
    return rearrange(heard.values, "b h n d -> b n (h d)").to(query.dtype)


EXCHANGES: Mapping[str, Callable[[Group, Sequence[int]], Exchange]] = {"ulysses": Ulysses, "ring": Ring}


def choose_exchange(name: str, transformer: AVTransformer, group: Group) -> str:
    """Choose how tokens are shared; "auto" takes Ulysses where the heads can be dealt out, else the ring.

    Raises:
        RequestError: There is no such exchange, or heads would be left over; says which numbers divide them.
    """
    if name not in ("auto", *EXCHANGES):
        raise RequestError(f"sequence_exchange {name!r} is not one of auto, {', '.join(EXCHANGES)}")
    heads = [transformer.config.video.heads, transformer.config.audio.heads]
    divides = all(count % group.size == 0 for count in heads)
    if name == "ulysses" and not divides:
        fits = [str(n) for n in range(1, min(heads) + 1) if not any(count % n for count in heads)]
        raise RequestError(
            f"sequence_parallel={group.size} does not divide {heads[0]} heads of the picture and {heads[1]} "
            f"of the sound, which sequence_exchange 'ulysses' deals out; {', '.join(fits)} do, or use 'ring'"
        )
    if name == "auto":
        return "ulysses" if divides else "ring"
    return name


@contextmanager
def shared_tokens(transformer: AVTransformer, group: Group, num_tokens: int, exchange: str) -> Iterator[None]:
    """Let attention over the video tokens reach those of all processes, while each holds its share.

    Args:
        num_tokens: Video tokens of all processes together, at least one for each.
        exchange: Its name.
    """
    if group.size == 1:
        yield
        return
    way = EXCHANGES[exchange](group, group.shares(num_tokens))
    changed: list[Attention] = []
    try:
        for block in transformer.transformer_blocks.children():  # iterating would bring streamed ones here
            for name, mix in (("attn1", way.among), ("video_to_audio_attn", way.toward)):
                attention = getattr(block, name, None)
                if attention is not None:
                    assert isinstance(attention, Attention)
                    attention.__dict__["mix"] = partial(mix, attention)
                    changed.append(attention)
        yield
    finally:
        for attention in changed:
            del attention.__dict__["mix"]
