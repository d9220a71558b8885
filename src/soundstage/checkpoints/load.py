"""Fill networks from files: built on `meta`, then filled one tensor after another; memory holds what is kept.

Tensors are read with plain reads into their final place. Memory-mapping would count every touched page of
the file against the process, on top of the copy.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.keymap import QUANTISATION_SUFFIXES
from soundstage.core.errors import CheckpointError
from soundstage.core.progress import OnProgress, Progress
from soundstage.nn.gguf_formats import BLOCK_FORMATS, decode_rows

M = TypeVar("M", bound=nn.Module)

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
STAGING_BYTES = 32 * 2**20  # of the buffer through which tensors pass that are cast or moved
CODING_BYTES = 2**20  # of the rows that are coded at once, which takes several times their size
SMALL_BYTES = 2**20  # up to here a tensor is converted even where weights stay on disk
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


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where tensors go and in which type."""

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None  # None = as stored
    mapped: str = ""  # tensors whose names begin so are not read but mapped into memory


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
    on_progress: OnProgress | None = None,
) -> None:
    """Fill a network in place; see `load_module`."""
    wanted = module.state_dict(keep_vars=True)
    check_names(wanted, tensors, what=what, unused=unused, optional=optional)
    names = sorted(wanted.keys() & tensors.keys(), key=lambda n: (tensors[n].path, tensors[n].entry.start))
    if adapt is not None:
        adapt(module, tensors, placement)
    reader = TensorReader(placement)
    begin, done = time.perf_counter(), 0
    try:
        for step, name in enumerate(names, start=1):
            _take(module, name, tensors, reader)
            done += tensors[name].entry.num_bytes
            if on_progress is not None:
                seconds = time.perf_counter() - begin
                on_progress(
                    Progress(stage="load", step=step, num_steps=len(names), seconds=seconds, bytes=done)
                )
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


def read_tensors(
    tensors: Mapping[str, StoredTensor], placement: Placement | None = None
) -> dict[str, Tensor]:
    """Read tensors by name, without a network."""
    reader = TensorReader(placement or Placement())
    try:
        return {name: reader.read(tensor, _scale(tensors, name)) for name, tensor in tensors.items()}
    finally:
        reader.close()


class TensorReader:
    """Reads tensors into their final place, one file open at a time.

    What needs no cast is read straight into its tensor; the rest passes through one small buffer in slices.
    So the peak is what is kept plus that buffer, whatever the size of the largest tensor.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._path: Path | None = None
        self._file: FileIO | None = None
        self._staging: Tensor | None = None

    def close(self) -> None:
        """Close the open file and give the buffer back."""
        if self._file is not None:
            self._file.close()
        self._path = self._file = self._staging = None

    def read(
        self, stored: StoredTensor, scale: StoredTensor | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Read one tensor: fp8 weights times `scale`, blocks of GGUF decoded, a surplus taken off.

        Args:
            device: Where to; where the placement says when absent.

        Raises:
            CheckpointError: The file ends early or the number format is unknown.
        """
        device = torch.device(self.placement.device) if device is None else device
        if stored.entry.dtype in BLOCK_FORMATS:
            return self._read_blocks(stored, device)
        dtype = _dtype(stored)
        factor = self._factor(scale)
        is_float8 = dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        target = dtype
        if dtype.is_floating_point:
            target = self.placement.dtype or (torch.bfloat16 if is_float8 else dtype)
        result = torch.empty(stored.entry.shape, dtype=target, device=device)
        surplus = stored.entry.surplus
        if target == dtype and factor is None and not surplus and result.device.type == "cpu":
            self._read_into(stored, result, stored.entry.start)
            return result
        flat = result.view(-1)
        for first, piece in self._pieces(stored, dtype, STAGING_BYTES // dtype.itemsize):
            if factor is not None:
                piece = piece.float() * factor
            flat[first : first + len(piece)].copy_(piece.float() - surplus if surplus else piece)
        return result

    def rows(
        self, stored: StoredTensor, scale: StoredTensor | None, device: torch.device
    ) -> Iterator[tuple[int, Tensor]]:
        """Read a weight some rows at a time, with the index of the first of them; valid until the next."""
        columns = stored.entry.shape[-1]
        form = BLOCK_FORMATS.get(stored.entry.dtype)
        dtype = torch.uint8 if form else _dtype(stored)
        width = form.row_bytes(columns) if form else columns
        factor = self._factor(scale)
        at_once = max(1, CODING_BYTES // (width * dtype.itemsize)) * width
        for first, piece in self._pieces(stored, dtype, at_once):
            rows = piece.view(-1, width).to(device)
            if form is not None:
                rows = decode_rows(stored.entry.dtype, rows)
            elif factor is not None:
                rows = rows.float() * factor
            yield first // width, rows

    def mapping(self, tensor: StoredTensor) -> Tensor | None:
        """View a tensor in its file, or None where it does not begin where its numbers may begin."""
        dtype = torch.uint8 if tensor.entry.dtype in BLOCK_FORMATS else _dtype(tensor)
        if tensor.entry.start % dtype.itemsize:
            return None
        size = tensor.path.stat().st_size
        whole = torch.from_file(str(tensor.path), shared=False, size=size, dtype=torch.uint8)
        return whole[tensor.entry.start : tensor.entry.end].view(dtype).view(self._shape(tensor))

    def stored(self, tensor: StoredTensor, device: torch.device, *, maps: bool = False) -> Tensor:
        """Read one tensor as the file has it, or map it; rows of GGUF blocks as bytes, (rows, bytes)."""
        mapped = self.mapping(tensor) if maps and tensor.entry.num_bytes > SMALL_BYTES else None
        if mapped is not None:
            return mapped
        dtype = torch.uint8 if tensor.entry.dtype in BLOCK_FORMATS else _dtype(tensor)
        result = torch.empty(self._shape(tensor), dtype=dtype, device=device)
        if device.type == "cpu":
            self._read_into(tensor, result, tensor.entry.start)
            return result
        flat = result.view(-1)
        for first, piece in self._pieces(tensor, result.dtype, STAGING_BYTES // result.dtype.itemsize):
            flat[first : first + len(piece)].copy_(piece)
        return result

    @staticmethod
    def _shape(tensor: StoredTensor) -> tuple[int, ...]:
        form, shape = BLOCK_FORMATS.get(tensor.entry.dtype), tensor.entry.shape
        return shape if form is None else (*shape[:-1], form.row_bytes(shape[-1]))

    def _read_blocks(self, stored: StoredTensor, device: torch.device) -> Tensor:
        target = self.placement.dtype or torch.bfloat16
        result = torch.empty(stored.entry.shape, dtype=target, device=device)
        by_row = result.view(-1, stored.entry.shape[-1])
        for first, rows in self.rows(stored, None, device):
            by_row[first : first + len(rows)].copy_(rows)
        return result

    def _factor(self, scale: StoredTensor | None) -> float | None:
        return None if scale is None else float(self.stored(scale, torch.device("cpu")).item())

    def _pieces(self, stored: StoredTensor, dtype: torch.dtype, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """Read a tensor through the buffer: some elements at a time, with the index of the first of them."""
        if self._staging is None:
            pin = torch.device(self.placement.device).type == "cuda"
            self._staging = torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=pin)
        total = stored.entry.num_bytes // dtype.itemsize
        for first in range(0, total, at_once):
            count = min(at_once, total - first)
            piece = self._staging[: count * dtype.itemsize].view(dtype)
            self._read_into(stored, piece, stored.entry.start + first * dtype.itemsize)
            yield first, piece

    def _read_into(self, stored: StoredTensor, target: Tensor, offset: int) -> None:
        file = self._open(stored.path)
        file.seek(offset)
        view = target.reshape(-1).view(torch.uint8).numpy().data
        while len(view):
            count = file.readinto(view)  # at most 2 GiB a call
            if not count:
                raise CheckpointError(
                    f"{stored.path} ends inside {stored.name}; finish or repeat the download"
                )
            view = view[count:]

    def _open(self, path: Path) -> FileIO:
        if self._file is None or path != self._path:
            if self._file is not None:
                self._file.close()
            try:
                self._file = path.open("rb", buffering=0)  # raw: no second copy
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
            self._path = path
        return self._file


def _take(module: nn.Module, name: str, tensors: Mapping[str, StoredTensor], reader: TensorReader) -> None:
    """Read one tensor into its place, or hand it to a layer that keeps it in a form of its own."""
    path, _, leaf = name.rpartition(".")
    owner, stored = module.get_submodule(path), tensors[name]
    device = torch.device(reader.placement.device)
    maps = reader.placement.mapped != "" and name.startswith(reader.placement.mapped)
    if maps and stored.entry.num_bytes > SMALL_BYTES and not _is_kept(stored, owner, leaf, reader.placement):
        raise CheckpointError(
            f"{stored.path}: {stored.name} is {stored.entry.dtype} and would have to be converted, but what "
            "stays on disk is used as it is; keep it in memory, or use a file in the format that is wanted"
        )
    if leaf == "weight" and isinstance(owner, TakesStored):
        for part in STORED_PARTS:
            found = tensors.get(f"{path}.{part}")
            if found is not None:
                owner.take_stored(part, reader.stored(found, device, maps=maps))
    elif leaf == "weight" and isinstance(owner, TakesRows):
        for start, rows in reader.rows(stored, _scale(tensors, name), device):
            owner.take_rows(start, rows)
    else:
        keeps = maps and _is_kept(stored, owner, leaf, reader.placement)
        value = reader.mapping(stored) if keeps else None
        _assign(owner, leaf, reader.read(stored, _scale(tensors, name), device) if value is None else value)


def _is_kept(stored: StoredTensor, owner: nn.Module, leaf: str, placement: Placement) -> bool:
    """Tell whether a tensor is used as it stands in the file."""
    if leaf == "weight" and isinstance(owner, TakesStored):
        return True
    if leaf == "weight" and isinstance(owner, TakesRows):
        return False
    dtype = TORCH_DTYPES.get(stored.entry.dtype)
    return dtype is not None and (not dtype.is_floating_point or placement.dtype in (None, dtype))


def _assign(owner: nn.Module, leaf: str, value: Tensor) -> None:
    old = owner._parameters.get(leaf)
    if old is not None:
        trainable = old.requires_grad and value.is_floating_point()
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=trainable)
    else:
        owner._buffers[leaf] = value


def _dtype(stored: StoredTensor) -> torch.dtype:
    dtype = TORCH_DTYPES.get(stored.entry.dtype)
    if dtype is None:
        known = ", ".join([*TORCH_DTYPES, *BLOCK_FORMATS])
        raise CheckpointError(
            f"{stored.path}: {stored.name} has the unknown number format {stored.entry.dtype}; known: {known}"
        )
    return dtype


def _scale(tensors: Mapping[str, StoredTensor], name: str) -> StoredTensor | None:
    """Find the scale of an fp8 weight: a scalar beside it."""
    scale = tensors.get(f"{name}_scale")
    if scale is None or not tensors[name].entry.dtype.startswith("F8_"):
        return None
    if scale.entry.num_elements != 1:
        raise CheckpointError(
            f"{scale.path}: {scale.name} is not one number; only per-tensor fp8 scales are read"
        )
    return scale


def _group(title: str, names: Iterable[str]) -> str:
    listed = list(names)
    if not listed:
        return ""
    shown = ", ".join(listed[:NAMES_SHOWN])
    more = f" ... and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return f"{len(listed)} {title}: {shown}{more}"
