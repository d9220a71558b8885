"""Several processes, usually one per GPU, that make one clip together.

Three ways to share the work, which combine:

- *guidance*: the passes of a step are dealt out; one gathering per step brings the predictions together.
- *sequence*: the video tokens of a pass are dealt out; see `shared_tokens.py`.
- *weights*: every process keeps a share of each block's; see `sharding.py`.

`torchrun` starts the processes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from soundstage.core.errors import RequestError

PATIENCE = timedelta(
    hours=2
)  # until a process that waits for the others gives up; one of them may write a file


@dataclass(frozen=True, kw_only=True)
class Group:
    """Processes that share one kind of work, and the place of this one among them."""

    size: int = 1
    rank: int = 0
    handle: Any = None  # torch's process group; None for a group of one

    def gather(self, x: Tensor, dim: int, lengths: Sequence[int] | None = None) -> Tensor:
        """Join the tensors of all processes.

        Args:
            lengths: Of each along `dim`, where they differ.
        """
        if self.size == 1:
            return x
        import torch.distributed as dist

        lengths = lengths or [x.shape[dim]] * self.size
        shape = list(x.shape)
        shape[dim] = max(lengths)
        sent = x.contiguous()
        if x.shape[dim] < shape[dim]:
            sent = x.new_zeros(shape)
            sent.narrow(dim, 0, x.shape[dim]).copy_(x)
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent, group=self.handle)
        return torch.cat(
            [part.narrow(dim, 0, length) for part, length in zip(parts, lengths, strict=True)], dim
        )

    def exchange(self, x: Tensor, given: Sequence[int], taken: Sequence[int]) -> Tensor:
        """Send `given[i]` rows to process i and take `taken[i]` rows from it."""
        import torch.distributed as dist

        result = x.new_empty(sum(taken), *x.shape[1:])
        dist.all_to_all_single(result, x.contiguous(), list(taken), list(given), group=self.handle)
        return result

    def pass_on(self, x: Tensor, coming: Tensor) -> Callable[[], None]:
        """Send a tensor to the next process and take one from the process before, while work goes on.

        Args:
            coming: Where what is taken goes; it is there, and `x` is free again, once the result was called.
        """
        import torch.distributed as dist

        after, before = (
            dist.get_global_rank(self.handle, (self.rank + step) % self.size) for step in (1, -1)
        )
        pending = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, x, after, self.handle),
                dist.P2POp(dist.irecv, coming, before, self.handle),
            ]
        )

        def arrived() -> None:
            for work in pending:
                work.wait()

        return arrived

    def share(self, count: int, rank: int | None = None) -> slice:
        """Return which of `count` things are a process's own; shares differ by one at most."""
        rank = self.rank if rank is None else rank
        each, over = divmod(count, self.size)
        first = each * rank + min(rank, over)
        return slice(first, first + each + (rank < over))

    def shares(self, count: int) -> list[int]:
        """Return the number of things of each process."""
        parts = (self.share(count, rank) for rank in range(self.size))
        return [part.stop - part.start for part in parts]


ALONE = Group()
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Team:
    """All processes, by what they share."""

    world: Group = ALONE
    guidance: Group = ALONE
    sequence: Group = ALONE
    device: torch.device = CPU
    exchange: str = "auto"  # how tokens are shared
    shards_weights: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process decodes and writes."""
        return self.world.rank == 0

    @property
    def in_step(self) -> bool:
        """Whether all processes must run the network equally often."""
        return self.shards_weights


def launched() -> bool:
    """Tell whether `torchrun` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Tell whether this process is the one that speaks for all that `torchrun` started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def join_team(
    device: torch.device, *, sequence: int = 1, exchange: str = "auto", shards_weights: bool = False
) -> Iterator[Team]:
    """Meet the other processes of a `torchrun`, and part when the block ends.

    Args:
        device: What kind to compute on; of several GPUs each process takes its own.
        sequence: Processes that share the tokens of one pass; the passes are dealt out over the rest.
        exchange: How they share them: "ulysses", "ring", or what fits the model.
        shards_weights: Whether each keeps a share of the transformer's weights.

    Raises:
        RequestError: The processes cannot be divided so.
    """
    import torch.distributed as dist

    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if sequence < 1 or size % sequence:
        fits = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise RequestError(f"sequence_parallel={sequence} does not divide {size} processes; {fits} do")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        passes = size // sequence
        rows = [[g * sequence + s for s in range(sequence)] for g in range(passes)]
        yield Team(
            world=Group(size=size, rank=rank, handle=dist.group.WORLD),
            sequence=_group(rows, rank),
            guidance=_group([list(column) for column in zip(*rows, strict=True)], rank),
            device=device,
            exchange=exchange,
            shards_weights=shards_weights,
        )
    finally:
        dist.destroy_process_group()


def _group(rows: list[list[int]], rank: int) -> Group:
    """Make the groups of all rows, as every process must, and return this one's own."""
    import torch.distributed as dist

    own = ALONE
    for ranks in rows:
        if len(ranks) == 1:
            continue
        handle = dist.new_group(ranks)
        if rank in ranks:
            own = Group(size=len(ranks), rank=ranks.index(rank), handle=handle)
    return own
