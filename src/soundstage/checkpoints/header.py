"""Read what a safetensors file holds from its header alone: no tensor data, no torch.

A file is eight bytes of little-endian header length, that many bytes of JSON, then the tensors back to back.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from soundstage.core.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library, too

DTYPE_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}

# First bytes of what people rename to .safetensors, and how to say it.
_FOREIGN = (
    (b"PK\x03\x04", "is a PyTorch pickle or another zip archive (.pt, .ckpt, .zip)"),
    (b"\x80\x02", "is a PyTorch pickle (.pt, .ckpt)"),
    (b"\x80\x03", "is a PyTorch pickle (.pt, .ckpt)"),
    (b"\x80\x04", "is a PyTorch pickle (.pt, .ckpt)"),
    (b"GGUF", "is a GGUF file"),
    (b"\x89HDF", "is an HDF5 file"),
    (b"\x1f\x8b", "is a gzip archive; unpack it first"),
    (b"version https://git-lfs", "is a git-lfs pointer, not the file itself; run `git lfs pull`"),
    (b"<!DOCTYPE", "is a web page, probably a failed download"),
    (b"<html", "is a web page, probably a failed download"),
)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in its file."""

    dtype: str  # safetensors spelling: BF16, F32, F8_E4M3 ...
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    end: int
    surplus: float = 0.0  # what the file's maker added to every value, to be taken off

    @property
    def num_elements(self) -> int:
        """Number of values; packed formats count their storage units."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.end - self.start


@dataclass(frozen=True, kw_only=True)
class Header:
    """All that a safetensors file says about itself before its data."""

    path: Path
    metadata: Mapping[str, Any]  # JSON-decoded where possible, text otherwise
    tensors: Mapping[str, TensorEntry]
    file_bytes: int  # present on disk
    expected_bytes: int  # according to the header

    @property
    def config(self) -> Mapping[str, Any]:
        """The model configuration, by section; empty where the file carries none."""
        config = self.metadata.get("config", {})
        return config if isinstance(config, Mapping) else {}

    @property
    def num_parameters(self) -> int:
        """Values in all tensors together."""
        return sum(entry.num_elements for entry in self.tensors.values())

    def dtypes(self) -> dict[str, int]:
        """Count the values per data type, the commonest first."""
        counts: dict[str, int] = {}
        for entry in self.tensors.values():
            counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.num_elements
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def read_header(path: Path, *, require_data: bool = True) -> Header:
    """Read the header of one safetensors file.

    Args:
        path: The file.
        require_data: Insist that the file is as long as its header says; off, a header with nothing behind it
            is accepted, which is enough to inspect it.

    Raises:
        CheckpointError: The file is missing, unreadable, truncated, damaged or of another format.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            header_length, raw = _read_raw_header(file, path, size)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path} is a directory; a .safetensors file is needed") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    data_start = 8 + header_length
    tensors = {
        name: _entry(path, name, value, data_start) for name, value in raw.items() if name != "__metadata__"
    }
    expected = max((entry.end for entry in tensors.values()), default=data_start)
    if require_data and size != expected:
        raise CheckpointError(_length_message(path, size, expected))
    metadata = {str(k): _decode(v) for k, v in (raw.get("__metadata__") or {}).items()}
    return Header(path=path, metadata=metadata, tensors=tensors, file_bytes=size, expected_bytes=expected)


def _read_raw_header(file: BinaryIO, path: Path, size: int) -> tuple[int, dict[str, Any]]:
    file.seek(0)
    head = file.read(32)
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); the download has not begun or failed")
    length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or not 2 <= length <= MAX_HEADER_BYTES or head[8:9] != b"{":
        kinds = (kind for magic, kind in _FOREIGN if head.startswith(magic))
        kind = next(kinds, "is not a safetensors file")
        raise CheckpointError(f"{path} {kind}; soundstage reads safetensors only")
    if size < 8 + length:
        raise CheckpointError(_length_message(path, size, 8 + length, what="its header alone needs"))
    file.seek(8)
    try:
        raw = json.loads(file.read(length))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}); download it again") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} has a damaged header (not a table); download it again")
    return length, raw


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape = str(value["dtype"]), tuple(int(n) for n in value["shape"])
        start, end = (int(n) + data_start for n in value["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} has a damaged header entry for {name!r}; download it again") from error
    bits = DTYPE_BITS.get(dtype)
    if start < data_start or end < start or (bits and (end - start) * 8 != math.prod(shape) * bits):
        raise CheckpointError(
            f"{path} is damaged: {name!r} is {dtype} of shape {list(shape)} but has {end - start} bytes"
        )
    return TensorEntry(dtype, shape, start, end)


def _length_message(path: Path, present: int, expected: int, *, what: str = "its header promises") -> str:
    if present < expected:
        missing = expected - present
        return (
            f"{path} is truncated: {present:,} bytes are present, {what} {expected:,} ({missing:,} missing); "
            "finish or repeat the download"
        )
    return f"{path} is damaged: {present:,} bytes are present, {what} {expected:,}; download it again"


def _decode(value: Any) -> Any:
    """Decode one metadata value; what is not JSON, such as a version 2.3.0, stays text.

    A bare number stays text as well, so that the version "2.10" does not become 2.1.
    """
    try:
        decoded = json.loads(value)
    except (TypeError, ValueError):
        return value
    return value if isinstance(decoded, int | float) and not isinstance(decoded, bool) else decoded
