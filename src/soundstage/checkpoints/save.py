"""Write a model in the official single-file layout: same names, same metadata, the same bytes every time."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from soundstage.checkpoints.keymap import official_name
from soundstage.checkpoints.reading import TORCH_DTYPES
from soundstage.core.errors import CheckpointError, ResourceError

_SPELLING = {dtype: name for name, dtype in TORCH_DTYPES.items()}

Part = nn.Module | Mapping[str, Tensor]


def save_checkpoint(
    path: Path,
    parts: Mapping[str, Part],
    *,
    config: Mapping[str, Any],
    model_version: str,
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
) -> None:
    """Write `parts` into one file.

    Args:
        path: The file; it appears only when it is complete.
        parts: Network or state dict by part name, see `soundstage.checkpoints.keymap`.
        config: Sections of the header's `config`: "transformer", "vae", "audio_vae", "vocoder" ...
        model_version: Tells the generation, such as "2.3.0".
        metadata: Further metadata; what is not text is written as JSON.
        dtype: Number format of floating-point tensors, for all parts or by part; None = as they are.

    Raises:
        CheckpointError: A value is too large for the chosen format, or the place cannot be written to.
        ResourceError: The disk is full.
    """
    tensors = {name: tensor for part, source in parts.items() for name, tensor in _named(part, source, dtype)}
    texts = {"config": dict(config), "model_version": model_version, "format": "pt", **(metadata or {})}
    write_safetensors(path, tensors, texts)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write one safetensors file; keys are sorted, so equal contents give equal bytes.

    Raises:
        CheckpointError: The place cannot be written to.
        ResourceError: The disk is full.
    """
    header, offsets = lay_out(tensors, metadata)
    try:
        with _replacing(path) as file:
            file.write(header)
            for name in offsets:
                value = tensors[name].detach().to("cpu").contiguous()
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            size = len(header) + sum(_size(tensor) for tensor in tensors.values())
            raise ResourceError(f"no space left for {path} ({size / 1e6:,.0f} MB)") from error
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


def lay_out(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> tuple[bytes, Mapping[str, int]]:
    """Make the beginning of a safetensors file, and tell where in the file every tensor is to be written.

    Args:
        tensors: Nothing is read of their values, and they may be on `meta`.

    Returns:
        The first bytes; the offsets of the tensors, in ascending order.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned without gaps
    header: dict[str, Any] = {"__metadata__": {key: _text(metadata[key]) for key in sorted(metadata)}}
    position, offsets = 0, {}
    for name in names:
        offsets[name], size = position, _size(tensors[name])
        header[name] = {
            "dtype": _SPELLING[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + at for name, at in offsets.items()}


class _replacing:  # noqa: N801  reads as a function
    """Write beside the target and rename at the end, so that no half file is ever seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> BinaryIO:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part")
        self.temporary = Path(name)
        self.file: BinaryIO = os.fdopen(handle, "wb")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.file.close()
            if kind is None:
                umask = os.umask(0)
                os.umask(umask)
                self.temporary.chmod(0o666 & ~umask)
                self.temporary.replace(self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def _named(
    part: str, source: Part, dtype: torch.dtype | Mapping[str, torch.dtype] | None
) -> Iterator[tuple[str, Tensor]]:
    wanted = dtype.get(part) if isinstance(dtype, Mapping) else dtype
    tensors = source.state_dict() if isinstance(source, nn.Module) else source
    for local, tensor in tensors.items():
        name = official_name(part, local)
        value = tensor.detach()
        if wanted is not None and value.is_floating_point():
            value = value.to(wanted)
            if not value.isfinite().all() and tensor.isfinite().all():
                raise CheckpointError(
                    f"{name} has values too large for {wanted}; store it as bfloat16 or float32"
                )
        yield name, value


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
