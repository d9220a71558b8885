"""Leave most blocks out in steps that would say nearly what the last one said. Approximate; off by default.

    step         computed                  reused
    block 0      runs                      runs                      its own change tells how much is new
    blocks 1..   run; what they added      left out; what they       (tokens after the last block minus
                 is kept                   added last is added         tokens after block 0)

Each guidance pass decides for itself, for both streams together: picture and sound are computed at the same
steps. Three guards hold the error down: the first and the last steps are always computed, so are at least two
of three, and a pass whose blocks are seen to change faster than they may is computed until they do not.

Source: first-block caching, as in ParaAttention (https://github.com/chengzeyi/ParaAttention); the criterion
is that of TeaCache, Liu et al. 2024, arXiv 2411.19108, eq. 4, on block 0 in place of its input.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.models.transformer.config import Stream
from soundstage.models.transformer.picking import take
from soundstage.models.transformer.rows import Row, Rows

MOST_REUSED = 0.35  # of the calls so far; a clip of which more is reused is another clip
FEWEST_CALLS = 10  # of a run; fewer differ too much from each other
Streams = Mapping[Stream, Tensor]  # tokens, rows stacked


@dataclass(frozen=True, kw_only=True)
class CacheRule:
    """When a pass may reuse what its blocks added last.

    Raises:
        RequestError: The threshold is not one, or the run is too short.
    """

    threshold: float  # change of what block 0 adds since the last computed step, relative, to reuse below
    num_calls: int  # of the network in the run
    first: int = 2  # calls at the beginning that are computed
    last: int = 2  # calls at the end that are computed
    guard: float = 3.0  # times the threshold that the blocks left out may have changed by, when last computed

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise RequestError(f"step_cache={self.threshold:g} is outside (0, 1); 0.1 is usual, 0 is off")
        if self.num_calls < FEWEST_CALLS:
            raise RequestError(
                f"step_cache needs {FEWEST_CALLS} steps or more, and there are {self.num_calls}: so few "
                "differ too much from each other"
            )

    def is_open(self, call: int) -> bool:
        """Tell whether a call, counted from 0, lies where reuse is considered."""
        return self.first <= call < self.num_calls - self.last


@dataclass
class _Memory:
    """What is known of one pass."""

    probe: dict[Stream, Tensor]  # what block 0 added when all blocks were last computed
    rest: dict[Stream, Tensor]  # what the other blocks added then
    drift: float  # by how much that had changed from the time before, relative


@dataclass
class StepCache:
    """A rule and the memory of one run; `begin`, `look` and `complete` are called in every step."""

    rule: CacheRule
    calls: int = 0  # so far
    computed: dict[Hashable, int] = field(default_factory=dict)  # by pass
    reused: dict[Hashable, int] = field(default_factory=dict)
    _memory: dict[Hashable, _Memory] = field(default_factory=dict)
    _before: dict[Stream, Tensor] = field(default_factory=dict)
    _after: dict[int, dict[Stream, Tensor]] = field(default_factory=dict)  # block 0, by number of the pass
    _probes: dict[int, dict[Stream, Tensor]] = field(default_factory=dict)
    _reusing: frozenset[int] = frozenset()

    @property
    def share(self) -> float:
        """Passes that were reused, of all so far."""
        reused, computed = sum(self.reused.values()), sum(self.computed.values())
        return reused / max(reused + computed, 1)

    @property
    def num_bytes(self) -> int:
        """What is kept from step to step."""
        kept = [
            t
            for memory in self._memory.values()
            for part in (memory.probe, memory.rest)
            for t in part.values()
        ]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def begin(self, tokens: Streams) -> None:
        """Note the tokens before block 0, a row per item."""
        self._before = {stream: x.clone() for stream, x in tokens.items()}

    def look(
        self, tokens: Streams, rows: Rows, names: Sequence[Hashable]
    ) -> tuple[dict[Stream, Tensor], Rows]:
        """Decide after block 0, and return the rows that the other blocks are to compute; perhaps none.

        Args:
            names: Of the passes, the same in every step of a run.
        """
        self._after = {
            number: {stream: take(x, rows.of_pass(number)).clone() for stream, x in tokens.items()}
            for number in range(len(names))
        }
        self._probes = {
            number: {stream: x - self._before[stream] for stream, x in after.items()}
            for number, after in self._after.items()
        }
        self._reusing = frozenset(self._choose(names))
        self.calls += 1
        kept = [
            (index, Row(row.item, passes))
            for index, row in enumerate(rows.rows)
            if (passes := tuple(number for number in row.passes if number not in self._reusing))
        ]
        if len(kept) == len(rows.rows):
            left = dict(tokens)
        else:
            left = {stream: take(x, [i for i, _ in kept]) if kept else x[:0] for stream, x in tokens.items()}
        return left, Rows(tuple(row for _, row in kept), rows.at_once)

    def complete(
        self, tokens: Streams, rows: Rows, names: Sequence[Hashable]
    ) -> tuple[dict[Stream, Tensor], Rows]:
        """Remember what was computed, add what is reused, and return the rows of all passes."""
        done: list[dict[Stream, Tensor]] = []
        for number, name in enumerate(names):
            after = self._after[number]
            if number in self._reusing:
                rest = self._memory[name].rest
                done.append({stream: x + rest[stream] for stream, x in after.items()})
                self.reused[name] = self.reused.get(name, 0) + 1
                continue
            result = {stream: take(x, rows.of_pass(number)) for stream, x in tokens.items()}
            rest = {stream: x - after[stream] for stream, x in result.items()}
            before = self._memory.get(name)
            drift = float("inf") if before is None else _change(rest, before.rest)
            self._memory[name] = _Memory(self._probes[number], rest, drift)
            self.computed[name] = self.computed.get(name, 0) + 1
            done.append(result)
        items = len(next(iter(done[0].values())))
        self._before, self._after, self._probes = {}, {}, {}
        return (
            {stream: torch.cat([part[stream] for part in done]) for stream in done[0]},
            Rows(tuple(Row(item, (n,)) for n in range(len(names)) for item in range(items)), rows.at_once),
        )

    def _choose(self, names: Sequence[Hashable]) -> list[int]:
        """Return the passes, by number, that reuse what they know."""
        rule = self.rule
        if not rule.is_open(self.calls):
            return []
        chosen = []
        for number, name in enumerate(names):
            memory = self._memory.get(name)
            if memory is None or memory.drift > rule.guard * rule.threshold:
                continue
            reused = self.reused.get(name, 0)
            if reused + 1 > MOST_REUSED * (reused + self.computed[name] + 1):
                continue
            if _change(self._probes[number], memory.probe) < rule.threshold:
                chosen.append(number)
        return chosen


def _change(new: Mapping[Stream, Tensor], old: Mapping[Stream, Tensor]) -> float:
    """Measure the relative change of the stream that changed most; one that stands still has none."""
    changes = [
        (new[stream] - x).abs().mean(dtype=torch.float32) / x.abs().mean(dtype=torch.float32).clamp(min=1e-12)
        for stream, x in old.items()
    ]
    return float(torch.stack(changes).max())
