"""Several processes, usually one per GPU, that make one clip together.

Two ways to share the work, which combine:

- *guidance*: the passes of a step are dealt out; one gathering per step brings the predictions together.
- *sequence*: the video tokens are dealt out. Before attention over them, tokens are exchanged for heads:
  every process then has all tokens of a part of the heads, and gives the results back the same way. Heads do
  not depend on each other, so nothing changes but rounding. Sound has few tokens and is not dealt out.

`torchrun` starts the processes. Weights can be sharded over all of them, block by block.

Source: the exchange, Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv 2309.14509, section 3.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.models.transformer.model import AVTransformer
from soundstage.nn.attention import Attention, KeyValue

PATIENCE = timedelta(
    hours=2
)  # until a process that waits for the others gives up; one of them may write a file


@dataclass(frozen=True, kw_only=True)
class Group:
    """Processes that share one kind of work, and the place of this one among them."""

    size: int = 1
    rank: int = 0
    handle: Any = None  # torch's process group; None for a group of one

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """Join equally large tensors of all processes."""
        if self.size == 1:
            return x
        import torch.distributed as dist

        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x, group=self.handle)
        return torch.cat(parts, dim=dim)

    def exchange(self, x: Tensor, given: list[int], taken: list[int]) -> Tensor:
        """Send `given[i]` rows to process i and take `taken[i]` rows from it."""
        import torch.distributed as dist

        result = x.new_empty(sum(taken), *x.shape[1:])
        dist.all_to_all_single(result, x.contiguous(), taken, given, group=self.handle)
        return result

    def share(self, count: int, rank: int | None = None) -> slice:
        """Return which of `count` things are a process's own: equal shares, the last smaller or empty."""
        each = -(-count // self.size)
        first = min(each * (self.rank if rank is None else rank), count)
        return slice(first, min(first + each, count))

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


@contextmanager
def join_team(device: torch.device, *, sequence: int = 1, shards_weights: bool = False) -> Iterator[Team]:
    """Meet the other processes of a `torchrun`, and part when the block ends.

    Args:
        device: What kind to compute on; of several GPUs each process takes its own.
        sequence: Processes that share the tokens of one pass; the passes are dealt out over the rest.

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


def check_heads(transformer: AVTransformer, group: Group) -> None:
    """Refuse a number of processes that the heads cannot be dealt out to.

    Raises:
        RequestError: Some heads would be left over; says which numbers do.
    """
    heads = [transformer.config.video.heads, transformer.config.audio.heads]
    if any(count % group.size for count in heads):
        fits = [str(n) for n in range(1, min(heads) + 1) if not any(count % n for count in heads)]
        raise RequestError(
            f"sequence_parallel={group.size} does not divide {heads[0]} heads of the picture and {heads[1]} "
            f"of the sound; {', '.join(fits)} do"
        )


@contextmanager
def shared_tokens(transformer: AVTransformer, group: Group, num_tokens: int) -> Iterator[None]:
    """Let attention over the video tokens reach those of all processes, while each holds its share.

    Args:
        num_tokens: Video tokens of all processes together.
    """
    if group.size == 1:
        yield
        return
    changed: list[Attention] = []
    lengths = group.shares(num_tokens)
    try:
        for block in transformer.transformer_blocks:
            for name, kind in (("attn1", _mix_own), ("video_to_audio_attn", _mix_other)):
                attention = getattr(block, name, None)
                if attention is not None:
                    assert isinstance(attention, Attention)
                    attention.__dict__["mix"] = _Mix(attention, group, lengths, kind)
                    changed.append(attention)
        yield
    finally:
        for attention in changed:
            del attention.__dict__["mix"]


class _Mix:
    """Takes the place of an attention's `mix`."""

    def __init__(self, attention: Attention, group: Group, lengths: list[int], kind: Any) -> None:
        self.attention = attention
        self.group = group
        self.lengths = lengths
        self.kind = kind

    def __call__(self, query: Tensor, keys_values: KeyValue, *, bias: Any = None) -> Tensor:
        mixed: Tensor = self.kind(self, query, keys_values, bias)
        return mixed

    def own_heads(self, query: Tensor, keys_values: KeyValue, bias: Any) -> Tensor:
        """Attend with this process's heads: all tokens are there."""
        attention = self.attention
        attention.heads //= self.group.size
        try:
            return Attention.mix(attention, query, keys_values, bias=bias)
        finally:
            attention.heads *= self.group.size

    def to_heads(self, *parts: Tensor) -> list[Tensor]:
        """Trade a share of the tokens for a share of the heads, several tensors at once."""
        size, own = self.group.size, parts[0].shape[1]
        x = torch.stack([rearrange(part, "b n (p e) -> (p n) b e", p=size) for part in parts], dim=2)
        x = self.group.exchange(x, [own] * size, self.lengths)
        return [rearrange(part, "n b e -> b n e") for part in x.unbind(2)]

    def to_tokens(self, x: Tensor) -> Tensor:
        """Invert it."""
        size, own = self.group.size, self.lengths[self.group.rank]
        x = self.group.exchange(rearrange(x, "b n e -> n b e"), self.lengths, [own] * size)
        return rearrange(x, "(p n) b e -> b n (p e)", p=size)


def _mix_own(mix: _Mix, query: Tensor, keys_values: KeyValue, bias: Any) -> Tensor:
    """Let video tokens attend to video tokens."""
    q, k, v = mix.to_heads(query, keys_values.k, keys_values.v)
    return mix.to_tokens(mix.own_heads(q, KeyValue(k, v), bias))


def _mix_other(mix: _Mix, query: Tensor, keys_values: KeyValue, bias: Any) -> Tensor:
    """Let audio tokens, which every process has, attend to video tokens."""
    k, v = mix.to_heads(keys_values.k, keys_values.v)
    size = mix.group.size
    own = query.chunk(size, dim=-1)[mix.group.rank]
    return mix.group.gather(mix.own_heads(own, KeyValue(k, v), bias), dim=2)


def shard_weights(transformer: AVTransformer, team: Team) -> None:
    """Keep a share of every block's weights; a block is gathered when it is run, and let go after.

    Source: Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(team.device.type, (team.world.size,))
    for block in transformer.transformer_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(transformer, mesh=mesh)
