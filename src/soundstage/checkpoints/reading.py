"""Read tensors into their final place: one file open at a time, and no memory but what is kept.

Tensors are read with plain reads. Memory-mapping would count every touched page of the file against the
process, on top of the copy. What is to stay on disk is mapped all the same: read-only, so that a file may be
larger than all memory, and once per file.
"""

import mmap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.core.errors import CheckpointError
from soundstage.nn.gguf_formats import BLOCK_FORMATS, decode_rows

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


@runtime_checkable
class KeepsConverted(Protocol):
    """What keeps weights on disk that no file has in the form in which they are used."""

    def keep(
        self,
        sources: Mapping[str, StoredTensor],
        kinds: Mapping[str, str],
        results: Mapping[str, Tensor],
        conversion: Iterable[tuple[str, Tensor]],
    ) -> Mapping[str, StoredTensor]:
        """Return where the results of a conversion are, which is made if it never was."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where tensors go and in which type."""

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None  # None = as stored
    mapped: str = ""  # tensors whose names begin so are not read but mapped into memory
    converted: KeepsConverted | None = None  # where they are put if they are used in another form


def read_tensors(
    tensors: Mapping[str, StoredTensor], placement: Placement | None = None
) -> dict[str, Tensor]:
    """Read tensors by name, without a network."""
    reader = TensorReader(placement or Placement())
    try:
        return {name: reader.read(tensor, scale_of(tensors, name)) for name, tensor in tensors.items()}
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
        self._mapped: dict[Path, Tensor] = {}  # whole files, as bytes
        self._staging: Tensor | None = None

    def close(self) -> None:
        """Close the open file and give the buffer back; a mapping lives as long as a tensor in it."""
        if self._file is not None:
            self._file.close()
        self._mapped.clear()
        self._path = self._file = self._staging = None

    def read(
        self,
        stored: StoredTensor,
        scale: StoredTensor | None = None,
        device: torch.device | None = None,
        *,
        into: Tensor | None = None,
    ) -> Tensor:
        """Read one tensor: fp8 weights times `scale`, blocks of GGUF decoded, a surplus taken off.

        Args:
            device: Where to; where the placement says when absent.
            into: Memory of that shape and type to read into; new when absent.

        Raises:
            CheckpointError: The file ends early or the number format is unknown.
        """
        device = torch.device(self.placement.device) if device is None else device
        if stored.entry.dtype in BLOCK_FORMATS:
            return self._read_blocks(stored, device, into)
        dtype, target = _dtype(stored), self.dtype_of(stored)
        factor = self._factor(scale)
        result = torch.empty(stored.entry.shape, dtype=target, device=device) if into is None else into
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

    def dtype_of(self, stored: StoredTensor) -> torch.dtype:
        """Return the type that a tensor is read to."""
        if stored.entry.dtype in BLOCK_FORMATS:
            return self.placement.dtype or torch.bfloat16
        dtype = _dtype(stored)
        if not dtype.is_floating_point:
            return dtype
        is_float8 = dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        return self.placement.dtype or (torch.bfloat16 if is_float8 else dtype)

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
        """View a tensor in its file, or None where it does not begin where its numbers may begin.

        It is only for reading: to write into it would end the process; see `is_borrowed`.

        Raises:
            CheckpointError: The file ends early or cannot be mapped.
        """
        dtype = torch.uint8 if tensor.entry.dtype in BLOCK_FORMATS else _dtype(tensor)
        if tensor.entry.start % dtype.itemsize:
            return None
        if tensor.path not in self._mapped:
            self._mapped[tensor.path] = _map(self._open(tensor.path), tensor.path)
        whole = self._mapped[tensor.path]
        if tensor.entry.end > len(whole):
            raise _ends_inside(tensor)
        return whole[tensor.entry.start : tensor.entry.end].view(dtype).view(self._shape(tensor))

    def stored(self, tensor: StoredTensor, device: torch.device, *, maps: bool = False) -> Tensor:
        """Read one tensor as the file has it, or map it; rows of GGUF blocks as bytes, (rows, bytes)."""
        mapped = self.mapping(tensor) if maps and can_stay_on_disk(tensor) else None
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

    def _read_blocks(self, stored: StoredTensor, device: torch.device, into: Tensor | None) -> Tensor:
        target = self.dtype_of(stored)
        result = torch.empty(stored.entry.shape, dtype=target, device=device) if into is None else into
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
                raise _ends_inside(stored)
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


def can_stay_on_disk(stored: StoredTensor) -> bool:
    """Tell whether a tensor is worth a place on disk; small ones are read in any case."""
    return stored.entry.num_bytes > SMALL_BYTES


def is_borrowed(tensor: Tensor) -> bool:
    """Tell whether memory is not torch's own, such as a view of a file, into which nobody may write."""
    return not tensor.untyped_storage().resizable()


def _map(file: FileIO, path: Path) -> Tensor:
    """View a whole file as bytes.

    The mapping is shared and read-only: the system then promises no memory for it, where for one that can be
    written to it would want as much as the file is large.
    """
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be mapped into memory: {error}") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # nobody writes: `is_borrowed`
        return torch.frombuffer(mapped, dtype=torch.uint8)  # keeps the mapping


def _ends_inside(stored: StoredTensor) -> CheckpointError:
    return CheckpointError(f"{stored.path} ends inside {stored.name}; finish or repeat the download")


def _dtype(stored: StoredTensor) -> torch.dtype:
    dtype = TORCH_DTYPES.get(stored.entry.dtype)
    if dtype is None:
        known = ", ".join([*TORCH_DTYPES, *BLOCK_FORMATS])
        raise CheckpointError(
            f"{stored.path}: {stored.name} has the unknown number format {stored.entry.dtype}; known: {known}"
        )
    return dtype


def scale_of(tensors: Mapping[str, StoredTensor], name: str) -> StoredTensor | None:
    """Find the scale of an fp8 weight: a scalar beside it."""
    scale = tensors.get(f"{name}_scale")
    if scale is None or not tensors[name].entry.dtype.startswith("F8_"):
        return None
    if scale.entry.num_elements != 1:
        raise CheckpointError(
            f"{scale.path}: {scale.name} is not one number; only per-tensor fp8 scales are read"
        )
    return scale
