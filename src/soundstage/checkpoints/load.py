"""Fill networks from files: built on `meta`, filled one tensor after another; memory holds what is kept."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.keymap import QUANTISATION_SUFFIXES
from soundstage.checkpoints.reading import (
    TORCH_DTYPES,
    Placement,
    TensorReader,
    can_stay_on_disk,
    scale_of,
)
from soundstage.core.errors import CheckpointError
from soundstage.core.progress import OnProgress, Progress

M = TypeVar("M", bound=nn.Module)

NAMES_SHOWN = 20
STORED_PARTS = ("weight", "weight_scale", "input_scale")


class TensorMismatchError(CheckpointError):
    """The file's tensors are not those of the network; the full lists are attributes."""

    def __init__(
        self,
        what: str,
        *,
        missing: Collection[str] = (),
        unexpected: Collection[str] = (),
        misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        self.missing = tuple(sorted(missing))
        self.unexpected = tuple(sorted(unexpected))
        self.misshapen = dict(sorted((misshapen or {}).items()))  # name → (in the file, in the network)
        groups = [
            _group("missing", self.missing),
            _group("unexpected", self.unexpected),
            _group(
                "misshapen", [f"{n} {list(a)} instead of {list(b)}" for n, (a, b) in self.misshapen.items()]
            ),
        ]
        super().__init__(f"{what} does not fit its configuration: " + "; ".join(filter(None, groups)))


@runtime_checkable
class TakesRows(Protocol):
    """A layer that keeps its weight in a form of its own, and makes it of a few rows at a time."""

    def take_rows(self, start: int, rows: Tensor) -> None:
        """Take rows of the weight in floating point."""


@runtime_checkable
class TakesStored(Protocol):
    """A layer that keeps its weight in the form of the file."""

    def take_stored(self, name: str, value: Tensor) -> None:
        """Take "weight", "weight_scale" or "input_scale" as the file has it."""


@runtime_checkable
class KeepsShare(Protocol):
    """What decides which rows of every weight this process keeps, of several that share a network."""

    def lay_out(self, module: nn.Module) -> None:
        """Replace the weights of a network without memory by shares with memory, not filled yet."""

    def own(self, weight: Tensor) -> tuple[Tensor, slice]:
        """Return the memory of the share of a weight, and which rows of the whole it is."""


Adapt = Callable[[nn.Module, Mapping[str, StoredTensor], Placement], None]


def load_module(
    build: Callable[[], M],
    tensors: Mapping[str, StoredTensor],
    *,
    what: str,
    placement: Placement,
    unused: Collection[str] = (),
    optional: Collection[str] = (),
    adapt: Adapt | None = None,
    shares: KeepsShare | None = None,
    on_progress: OnProgress | None = None,
) -> M:
    """Build a network without memory and fill it from `tensors`, strictly.

    Args:
        build: Makes the network; called on the meta device.
        tensors: Its tensors by the names of its state dict.
        what: Names the thing in errors, such as "video VAE of ltx.safetensors".
        unused: Names that may be in `tensors` without being wanted.
        optional: Names that may be absent; the network must then fill them itself.
        adapt: Puts layers that keep their weights in another form into places of plain ones.
        shares: Of what this process keeps a part only; nothing else is read. Layers must be plain.

    Raises:
        TensorMismatchError: Names or shapes differ.
        CheckpointError: A file cannot be read or its number format is not supported.
    """
    with torch.device("meta"):
        module = build()
    fill(
        module,
        tensors,
        what=what,
        placement=placement,
        unused=unused,
        optional=optional,
        adapt=adapt,
        shares=shares,
        on_progress=on_progress,
    )
    return module


def fill(
    module: nn.Module,
    tensors: Mapping[str, StoredTensor],
    *,
    what: str,
    placement: Placement,
    unused: Collection[str] = (),
    optional: Collection[str] = (),
    adapt: Adapt | None = None,
    shares: KeepsShare | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Fill a network in place; see `load_module`."""
    wanted = module.state_dict(keep_vars=True)
    check_names(wanted, tensors, what=what, unused=unused, optional=optional)
    names = sorted(wanted.keys() & tensors.keys(), key=lambda n: (tensors[n].path, tensors[n].entry.start))
    if adapt is not None:
        adapt(module, tensors, placement)
    reader = TensorReader(placement)
    if shares is not None:
        for name in names:  # what is built anew has torch's own type
            owner, leaf = _place_of(module, name)
            shape, dtype = tensors[name].entry.shape, reader.dtype_of(tensors[name])
            _assign(owner, leaf, torch.empty(shape, dtype=dtype, device="meta"))
        shares.lay_out(module)
    begin, step, done = time.perf_counter(), 0, 0

    def note(name: str) -> None:
        nonlocal step, done
        step, done = step + 1, done + tensors[name].entry.num_bytes
        if on_progress is not None:
            seconds = time.perf_counter() - begin
            on_progress(Progress(stage="load", step=step, num_steps=len(names), seconds=seconds, bytes=done))

    try:
        converted = _convert(module, names, tensors, reader, note)
        for name in names:
            if shares is not None:
                _take_share(module, name, tensors, reader, shares)
                note(name)
            elif name not in converted:
                _take(module, name, tensors, reader, maps=_maps(name, placement))
                note(name)
    finally:
        reader.close()


def check_names(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, StoredTensor],
    *,
    what: str,
    unused: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Compare names and shapes without reading data.

    Raises:
        TensorMismatchError: They differ by more than the allowed gaps.
        CheckpointError: The tensors are quantised in a way that is not supported.
    """
    scales = {name for name in tensors if name.endswith(QUANTISATION_SUFFIXES)}
    if any(name.endswith(".weight_scale_2") for name in scales):
        raise CheckpointError(
            f"{what} is quantised to 4 bits (NVFP4), which soundstage does not read; use bf16 or fp8"
        )
    missing = wanted.keys() - tensors.keys() - set(optional)
    unexpected = tensors.keys() - wanted.keys() - set(unused) - scales
    misshapen = {
        name: (tensors[name].entry.shape, tuple(wanted[name].shape))
        for name in wanted.keys() & tensors.keys()
        if tensors[name].entry.shape != tuple(wanted[name].shape)
    }
    if missing or unexpected or misshapen:
        raise TensorMismatchError(what, missing=missing, unexpected=unexpected, misshapen=misshapen)


def _convert(
    module: nn.Module,
    names: Sequence[str],
    tensors: Mapping[str, StoredTensor],
    reader: TensorReader,
    note: Callable[[str], None],
) -> Collection[str]:
    """Have what stays on disk in another form than its file's converted and mapped; return what that was."""
    place = reader.placement
    pending = {}
    for name in names:
        owner, leaf = _place_of(module, name)
        is_mapped = _maps(name, place) and can_stay_on_disk(tensors[name])
        if is_mapped and not _is_kept(tensors[name], owner, leaf, place):
            pending[name] = _results(name, owner, tensors[name], place)
    if not pending:
        return ()
    if place.converted is None:
        name = next(iter(pending))
        raise CheckpointError(
            f"{tensors[name].path}: {tensors[name].name} is {tensors[name].entry.dtype} and would have to be "
            "converted, but what stays on disk is used as it is; keep it in memory, or use a file in the "
            "format that is wanted"
        )

    unread = dict.fromkeys(pending)

    def conversion() -> Iterator[tuple[str, Tensor]]:
        for name, results in pending.items():
            _take(module, name, tensors, reader)
            note(name)
            del unread[name]
            for result, meta in results.items():
                owner, leaf = _place_of(module, result)
                yield result, getattr(owner, leaf)
                _assign(owner, leaf, meta)  # it has been written: make room for the next

    scales = [f"{name}_scale" for name in pending if f"{name}_scale" in tensors]
    kept = place.converted.keep(
        {name: tensors[name] for name in (*pending, *scales)},
        {name: type(_place_of(module, name)[0]).__name__ for name in pending},
        {name: meta for results in pending.values() for name, meta in results.items()},
        conversion(),
    )
    for result, stored in kept.items():
        owner, leaf = _place_of(module, result)
        mapped = reader.mapping(stored)
        _assign(owner, leaf, reader.stored(stored, torch.device("cpu")) if mapped is None else mapped)
    for name in unread:  # converted earlier
        note(name)
    return pending.keys()


def _results(name: str, owner: nn.Module, stored: StoredTensor, place: Placement) -> dict[str, Tensor]:
    """List what a tensor is converted to, as tensors without memory."""
    path, _, leaf = name.rpartition(".")
    if leaf == "weight" and isinstance(owner, TakesRows):
        buffers = dict(owner.named_buffers(recurse=False))
        return {f"{path}.{own}": torch.empty_like(value, device="meta") for own, value in buffers.items()}
    dtype = place.dtype or torch.bfloat16  # of codes that are widened without being told to what
    return {name: torch.empty(stored.entry.shape, dtype=dtype, device="meta")}


def _maps(name: str, place: Placement) -> bool:
    """Tell whether a tensor stays on disk."""
    return place.mapped != "" and name.startswith(place.mapped)


def _place_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Find the layer that a tensor hangs at, and the name it has there."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _take(
    module: nn.Module,
    name: str,
    tensors: Mapping[str, StoredTensor],
    reader: TensorReader,
    *,
    maps: bool = False,
) -> None:
    """Read one tensor into its place, or hand it to a layer that keeps it in a form of its own.

    Args:
        maps: Map it into memory, if it is used as it stands in the file.
    """
    path = name.rpartition(".")[0]
    owner, leaf = _place_of(module, name)
    stored, device = tensors[name], torch.device(reader.placement.device)
    if leaf == "weight" and isinstance(owner, TakesStored):
        for part in STORED_PARTS:
            found = tensors.get(f"{path}.{part}")
            if found is not None:
                owner.take_stored(part, reader.stored(found, device, maps=maps))
    elif leaf == "weight" and isinstance(owner, TakesRows):
        for start, rows in reader.rows(stored, scale_of(tensors, name), device):
            owner.take_rows(start, rows)
    else:
        keeps = maps and _is_kept(stored, owner, leaf, reader.placement)
        value = reader.mapping(stored) if keeps else None
        _assign(owner, leaf, reader.read(stored, scale_of(tensors, name), device) if value is None else value)


def _take_share(
    module: nn.Module,
    name: str,
    tensors: Mapping[str, StoredTensor],
    reader: TensorReader,
    shares: KeepsShare,
) -> None:
    """Read this process's rows of one tensor into their place."""
    owner, leaf = _place_of(module, name)
    own, rows = shares.own(getattr(owner, leaf))
    if rows.stop > rows.start:
        reader.read(tensors[name].rows(rows), scale_of(tensors, name), own.device, into=own)


def _is_kept(stored: StoredTensor, owner: nn.Module, leaf: str, placement: Placement) -> bool:
    """Tell whether a tensor is used as it stands in the file."""
    if leaf == "weight" and isinstance(owner, TakesStored):
        return True
    if leaf == "weight" and isinstance(owner, TakesRows):
        return False
    dtype = TORCH_DTYPES.get(stored.entry.dtype)
    if stored.entry.surplus:
        return False
    return dtype is not None and (not dtype.is_floating_point or placement.dtype in (None, dtype))


def _assign(owner: nn.Module, leaf: str, value: Tensor) -> None:
    old = owner._parameters.get(leaf)
    if old is not None:
        trainable = old.requires_grad and value.is_floating_point()
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=trainable)
    else:
        owner._buffers[leaf] = value


def _group(title: str, names: Iterable[str]) -> str:
    listed = list(names)
    if not listed:
        return ""
    shown = ", ".join(listed[:NAMES_SHOWN])
    more = f" ... and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return f"{len(listed)} {title}: {shown}{more}"
