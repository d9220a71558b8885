"""Blocks that live in host memory or on disk and visit the device one after another.

    host    block 0   block 1   block 2   block 3 ...      each one piece of page-locked memory, or a file
               |         |         |
    device  [slot A]  [slot B]  [slot A] ...                two slots: while one computes, the other is filled

The next block is copied on a stream of its own while the present one computes. After the last block the first
follows again, so that the next step finds it there. Some blocks may stay on the device for good.

A block in a slot is the same module with the same numbers: results are equal bit for bit.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes; where tensors begin inside a slot
NUM_SLOTS = 2


@dataclass(frozen=True)
class Hanging:
    """One tensor of a network: the module and the name it hangs at, and its values in host memory."""

    owner: nn.Module
    leaf: str
    home: Tensor

    def put(self, value: Tensor) -> None:
        """Have the tensor's values lie elsewhere; it stays the same tensor, by which `Kept` knows it.

        Between devices whose tensors are of different kinds it cannot, and another one hangs there, as with
        `nn.Module.to`.
        """
        tensor = self.tensor
        if torch._has_compatible_shallow_copy_type(tensor, value):
            tensor.data = value
        elif self.leaf in self.owner._parameters:
            self.owner._parameters[self.leaf] = nn.Parameter(value, requires_grad=False)
        else:
            self.owner._buffers[self.leaf] = value

    def replace(self, value: Tensor) -> None:
        """Have other values in the tensor's place, which counts as writing into it."""
        self.put(value)
        torch.autograd.graph.increment_version(self.tensor)

    @property
    def tensor(self) -> Tensor:
        """What hangs there."""
        kind = self.owner._parameters if self.leaf in self.owner._parameters else self.owner._buffers
        tensor = kind[self.leaf]
        assert tensor is not None
        return tensor


@dataclass(frozen=True)
class _Piece:
    """Bytes that are copied together, and the tensors that lie in them."""

    source: Tensor  # bytes in host memory
    first: int  # offset of these bytes in their storage
    tensors: Sequence[Hanging]

    def hang(self, memory: Tensor, start: int) -> None:
        """Hang the tensors up as they lie in other memory, their bytes beginning at `start`."""
        for tensor in self.tensors:
            home = tensor.home
            offset = start - self.first + home.storage_offset() * home.element_size()
            there = memory.view(home.dtype)
            place = offset // home.element_size()
            tensor.put(there.as_strided(home.shape, home.stride(), place))


@dataclass
class _Slot:
    """Memory on the device for one block at a time."""

    memory: Tensor
    holds: int | None = None
    pending: "Future[None] | None" = None  # a copy that another thread is making
    ready: "torch.cuda.Event | None" = None  # the copy into it
    free: "torch.cuda.Event | None" = None  # the last use of what it holds, or of its memory by others


@dataclass(frozen=True, kw_only=True)
class StreamingPlan:
    """How many blocks stay on the device, and where the others wait."""

    device: torch.device
    resident: int = 0  # blocks that stay on the device
    on_disk: bool = False  # the others are views of files, read when needed; not packed into memory


class StreamedBlocks(nn.ModuleList):
    """A list of blocks that brings each one to the device when it is asked for.

    It takes the place of a plain list in a network. A block must no longer be used once another is asked for.
    """

    def __init__(self, blocks: Sequence[nn.Module], plan: StreamingPlan) -> None:
        """Take blocks whose tensors are in host memory."""
        super().__init__(blocks)
        self.plan = plan
        self._streamed = [i for i in range(len(blocks)) if not _is_resident(i, plan.resident, len(blocks))]
        self._slots: list[_Slot] = []
        self._homes: dict[int, list[_Piece]] = {}  # of the blocks that are in slots
        self._current: _Slot | None = None
        self._locked: list[Tensor] = []
        self._locks = True  # until the system refuses
        is_gpu = plan.device.type == "cuda"
        self._side = torch.cuda.Stream(plan.device) if is_gpu else None  # type: ignore[no-untyped-call]  # torch leaves it bare
        self._reader = ThreadPoolExecutor(1) if is_gpu and plan.on_disk else None
        for index, block in enumerate(blocks):
            if index not in self._streamed:
                block.to(plan.device)
                continue
            block.requires_grad_(False)  # what is overwritten with another block has no gradient
            if not plan.on_disk:
                self._pack(block)
        self.block_bytes = max((_needed(self._pieces(i)) for i in self._streamed), default=0)

    def __iter__(self) -> Iterator[nn.Module]:
        """Yield the blocks, each on the device."""
        for index in range(len(self)):
            yield self._fetch(index)

    def __getitem__(self, index: int | slice) -> Any:
        """Bring one block to the device; of a range, bring each when its turn comes."""
        if isinstance(index, slice):
            return _Some(self, range(*index.indices(len(self))))
        return self._fetch(range(len(self))[index])

    def streamed(self) -> Iterator[nn.Module]:
        """Yield the blocks that do not stay on the device, each where it is."""
        for index in self._streamed:
            block = self._modules[str(index)]
            assert block is not None
            yield block

    @property
    def most_bytes(self) -> int:
        """The largest block as it comes into a slot, with what LoRAs put beside its layers."""
        at_home = (self._pieces(index) for index in self._streamed)
        return self.block_bytes if self.is_out else max(map(_needed, at_home), default=0)

    @property
    def is_out(self) -> bool:
        """Whether any block that is streamed is on the device."""
        return bool(self._slots)

    def release(self) -> None:
        """Give the slots back; all blocks that are streamed are at home again."""
        if self._side is not None and self._slots:
            torch.cuda.synchronize(self.plan.device)
        for slot in self._slots:
            self._leave(slot)
        self._slots, self._current = [], None

    def _fetch(self, index: int) -> nn.Module:
        block = self._modules[str(index)]
        assert block is not None
        if self._current is not None:
            # Everything that uses the block before has been given to the device by now.
            self._mark(self._current)
        if index not in self._streamed:
            self._current = None
            if self._streamed:
                self._prefetch(index)
            return block
        slot = self._slot_of(index) or self._fill(index, avoid=self._current)
        if slot.pending is not None:
            slot.pending.result()
        if slot.ready is not None:
            torch.cuda.current_stream(self.plan.device).wait_event(slot.ready)
        self._current = slot
        self._prefetch(index)
        return block

    def _prefetch(self, index: int) -> None:
        """Begin to bring the next block that is streamed, the first following the last."""
        following = next((i for i in self._streamed if i > index), self._streamed[0])
        if self._slot_of(following) is None:
            self._fill(following, avoid=self._current)

    def _slot_of(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.holds == index), None)

    def _fill(self, index: int, avoid: _Slot | None) -> _Slot:
        """Begin to copy a block into a slot that is not in use."""
        if len(self._slots) < NUM_SLOTS:
            empty = torch.empty(0, dtype=torch.uint8, device=self.plan.device)
            self._slots.append(_Slot(empty))
        slot = next(slot for slot in reversed(self._slots) if slot is not avoid)
        self._leave(slot)
        pieces = self._pieces(index)
        if slot.memory.numel() < _needed(pieces):
            self._enlarge(slot, max(_needed(pieces), self.block_bytes))
        slot.holds, self._homes[index] = index, pieces
        if self._reader is None:
            self._copy(pieces, slot)
        else:
            slot.pending = self._reader.submit(self._copy, pieces, slot)
        for piece, start in _laid_out(pieces):
            piece.hang(slot.memory, start)
        return slot

    def _enlarge(self, slot: _Slot, size: int) -> None:
        """Give a slot other memory; a block grows when LoRA branches are put beside its layers."""
        if self._side is not None and slot.memory.numel():
            self._side.synchronize()  # no copy may still write to what is given back
        slot.memory = torch.empty(0, dtype=torch.uint8, device=self.plan.device)  # give back first
        slot.memory = torch.empty(size, dtype=torch.uint8, device=self.plan.device)
        slot.free = None  # of what it had
        self._mark(slot)  # the memory may have been another's until now

    def _mark(self, slot: _Slot) -> None:
        """Have the next copy wait for what the caller's stream was given; the copying thread has its own."""
        if self._side is not None:
            slot.free = torch.cuda.current_stream(self.plan.device).record_event()

    def _copy(self, pieces: Sequence[_Piece], slot: _Slot) -> None:
        with nullcontext() if self._side is None else torch.cuda.stream(self._side):
            if self._side is not None and slot.free is not None:
                self._side.wait_event(slot.free)
            for piece, start in _laid_out(pieces):
                place = slot.memory[start : start + piece.source.numel()]
                place.copy_(piece.source, non_blocking=True)
            if self._side is not None:
                slot.ready = self._side.record_event()

    def _leave(self, slot: _Slot) -> None:
        """Send the block in a slot home; its tensors do not change on the device, so nothing is copied."""
        if slot.pending is not None:
            slot.pending.result()
        if slot.holds is not None:
            for piece in self._homes.pop(slot.holds):
                for tensor in piece.tensors:
                    tensor.put(tensor.home)
        slot.holds = slot.pending = None

    def _pieces(self, index: int) -> list[_Piece]:
        """List the pieces of a block that is at home."""
        block = self._modules[str(index)]
        assert block is not None
        return _pieces(block, apart=self.plan.on_disk)

    def _pack(self, block: nn.Module) -> None:
        """Lay all tensors of a block into one piece of memory, so that it is copied at once."""
        pieces = _pieces(block, apart=False)
        memory = torch.empty(_needed(pieces), dtype=torch.uint8)
        for piece, start in _laid_out(pieces):
            memory[start : start + piece.source.numel()].copy_(piece.source)
            piece.hang(memory, start)
        if self._side is not None and self._locks:
            self._lock(memory)

    def _lock(self, memory: Tensor) -> None:
        """Page-lock memory where it lies; torch's own pinned memory comes in powers of two.

        Where the system refuses, copies are slower and nothing else changes; no more is asked for then.
        """
        error = int(_cuda().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
        if error == 0:
            self._locked.append(memory)
            return
        _forget_error(self.plan.device)
        self._locks = False
        logger.warning(
            "only %.1f GB of host memory could be page-locked (CUDA error %d): streaming will be slower",
            sum(locked.numel() for locked in self._locked) / 1e9,
            error,
        )

    def __del__(self) -> None:
        for memory in getattr(self, "_locked", []):
            _cuda().cudaHostUnregister(memory.data_ptr())


class _Some:
    """A range of streamed blocks, each brought to the device when its turn comes."""

    def __init__(self, blocks: StreamedBlocks, indices: range) -> None:
        self._blocks, self._indices = blocks, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[nn.Module]:
        return (self._blocks[index] for index in self._indices)


def stream(network: nn.Module, name: str, plan: StreamingPlan) -> StreamedBlocks:
    """Have a network's list of blocks streamed.

    Args:
        name: Of the list, such as "transformer_blocks".
    """
    blocks = network.get_submodule(name)
    assert isinstance(blocks, nn.ModuleList)
    streamed = StreamedBlocks(list(blocks), plan)
    network.set_submodule(name, streamed)
    return streamed


def streaming_of(network: nn.Module) -> dict[nn.Module, StreamingPlan]:
    """Tell of every module in a block that is streamed by which plan it is; of others nothing."""
    return {
        module: blocks.plan
        for blocks in network.modules()
        if isinstance(blocks, StreamedBlocks)
        for block in blocks.streamed()
        for module in block.modules()
    }


def hangings(network: nn.Module) -> Iterator[Hanging]:
    """List the tensors of a network, each where it hangs."""
    for owner in network.modules():
        for kind in (owner._parameters, owner._buffers):
            for leaf, value in kind.items():
                if value is not None:
                    yield Hanging(owner, leaf, value.detach())


def copy_to(device: torch.device, tensors: Sequence[Hanging]) -> None:
    """Hang copies of tensors up that lie on a device, side by side where the tensors do."""
    for piece in _gathered(tensors):
        memory = torch.empty(_aligned(piece.source.numel()), dtype=torch.uint8, device=device)
        memory[: piece.source.numel()].copy_(piece.source)
        piece.hang(memory, 0)


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch leaves it bare


def _forget_error(device: torch.device) -> None:
    """Clear the error of a failed call, which CUDA would lay to the charge of the next kernel.

    Where torch has no call for that, a kernel is sent ahead to take it.
    """
    clear = getattr(_cuda(), "cudaGetLastError", None)
    if clear is not None:
        clear()
        return
    with suppress(RuntimeError):
        torch.ones(1, device=device)


def _is_resident(index: int, resident: int, count: int) -> bool:
    """Spread the blocks that stay evenly, so that copies find computation to hide behind."""
    return (index + 1) * resident // count > index * resident // count


def _pieces(block: nn.Module, *, apart: bool) -> list[_Piece]:
    """Gather the tensors of a block by the memory they share; `apart` takes every tensor by itself."""
    tensors = list(hangings(block))
    return [_piece([tensor]) for tensor in tensors] if apart else _gathered(tensors)


def _gathered(tensors: Sequence[Hanging]) -> list[_Piece]:
    """Gather tensors by the memory they share; in a file's mapping, which all share, each is by itself."""
    groups: dict[object, list[Hanging]] = {}
    for number, tensor in enumerate(tensors):
        storage = tensor.home.untyped_storage()
        key = storage.data_ptr() if storage.resizable() and storage.nbytes() else ("apart", number)
        groups.setdefault(key, []).append(tensor)
    return [_piece(group) for group in groups.values()]


def _piece(tensors: Sequence[Hanging]) -> _Piece:
    spans = [_span(tensor.home) for tensor in tensors]
    first, end = min(span[0] for span in spans), max(span[1] for span in spans)
    source = torch.empty(0, dtype=torch.uint8)
    source.set_(tensors[0].home.untyped_storage(), first, (end - first,), (1,))
    return _Piece(source, first, tensors)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor begins and ends in its storage, in bytes."""
    size = tensor.element_size()
    start = tensor.storage_offset() * size
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return int(start), int(start + (reach * size if tensor.numel() else 0))


def _laid_out(pieces: Sequence[_Piece]) -> Iterator[tuple[_Piece, int]]:
    """Pair pieces with where they begin when they are laid one behind the other."""
    start = 0
    for piece in pieces:
        yield piece, start
        start += _aligned(piece.source.numel())


def _needed(pieces: Sequence[_Piece]) -> int:
    return sum(_aligned(piece.source.numel()) for piece in pieces)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
