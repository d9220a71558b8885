"""Fill networks from files: built on `meta`, then filled one tensor after another; memory holds what is kept.

Tensors are read with plain reads into their final place. Memory-mapping would count every touched page of
the file against the process, on top of the copy.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.keymap import QUANTISATION_SUFFIXES
from soundstage.core.errors import CheckpointError
from soundstage.core.progress import OnProgress, Progress

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
NAMES_SHOWN = 20


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


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where tensors go and in which type."""

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None  # None = as stored


def load_module(
    build: Callable[[], M],
    tensors: Mapping[str, StoredTensor],
    *,
    what: str,
    placement: Placement,
    unused: Collection[str] = (),
    optional: Collection[str] = (),
    on_progress: OnProgress | None = None,
) -> M:
    """Build a network without memory and fill it from `tensors`, strictly.

    Args:
        build: Makes the network; called on the meta device.
        tensors: Its tensors by the names of its state dict.
        what: Names the thing in errors, such as "video VAE of ltx.safetensors".
        unused: Names that may be in `tensors` without being wanted.
        optional: Names that may be absent; the network must then fill them itself.

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
    on_progress: OnProgress | None = None,
) -> None:
    """Fill a network in place; see `load_module`."""
    wanted = module.state_dict(keep_vars=True)
    check_names(wanted, tensors, what=what, unused=unused, optional=optional)
    names = sorted(wanted.keys() & tensors.keys(), key=lambda n: (tensors[n].path, tensors[n].entry.start))
    reader = TensorReader(placement)
    begin, done = time.perf_counter(), 0
    try:
        for step, name in enumerate(names, start=1):
            _assign(module, name, reader.read(tensors[name], _scale(tensors, name)))
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

    def read(self, stored: StoredTensor, scale: StoredTensor | None = None) -> Tensor:
        """Read one tensor; with `scale`, multiply an fp8 weight by it.

        Raises:
            CheckpointError: The file ends early or the number format is unknown.
        """
        dtype = TORCH_DTYPES.get(stored.entry.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{stored.path}: {stored.name} has the unknown number format {stored.entry.dtype}"
            )
        factor = None if scale is None else float(self.read(scale).item())
        is_float8 = dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        target = dtype
        if dtype.is_floating_point:
            target = self.placement.dtype or (torch.bfloat16 if is_float8 else dtype)
        result = torch.empty(stored.entry.shape, dtype=target, device=self.placement.device)
        if target == dtype and factor is None and result.device.type == "cpu":
            self._read_into(stored, result, stored.entry.start)
        else:
            self._read_staged(stored, dtype, result.view(-1), factor)
        return result

    def _read_staged(
        self, stored: StoredTensor, dtype: torch.dtype, result: Tensor, factor: float | None
    ) -> None:
        if self._staging is None:
            pin = torch.device(self.placement.device).type == "cuda"
            self._staging = torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=pin)
        per_slice = STAGING_BYTES // dtype.itemsize
        for first in range(0, result.numel(), per_slice):
            count = min(per_slice, result.numel() - first)
            piece = self._staging[: count * dtype.itemsize].view(dtype)
            self._read_into(stored, piece, stored.entry.start + first * dtype.itemsize)
            values = piece if factor is None else piece.float() * factor
            result[first : first + count].copy_(values)

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


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    old = owner._parameters.get(leaf)
    if old is not None:
        trainable = old.requires_grad and value.is_floating_point()
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=trainable)
    else:
        owner._buffers[leaf] = value


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
