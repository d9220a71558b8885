"""Write what a task trained in the official layout, and join such files into one model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from soundstage.checkpoints.header import read_header
from soundstage.checkpoints.releases import EMBEDDED, EMBEDDED_FILE
from soundstage.checkpoints.save import lay_out, write_safetensors
from soundstage.checkpoints.versions.embedded import MARK, MARK_KEY
from soundstage.core.errors import CheckpointError
from soundstage.training.merging import add_loras

MODEL_VERSION = "2.3"  # the generation whose transformer flags the embedded model uses
METADATA_SECTIONS = ("gemma_config",)  # stored beside `config`, as in the official 2.5 text-encoder file
# Layers that older networks of ours lack; a new one does no harm.
ADDED = ("detail_head", "audio_detail_head", "position_proj", "audio_position_proj", "tone_gates")


def write_component(path: Path, sections: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write header sections and tensors; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, tensors, _metadata(sections))


def write_pieces(path: Path, folder: Path, max_bytes: int) -> list[Path]:
    """Write a component file once more, as pieces for ways that take no large files.

    The folder is a model, too, and `assemble` joins the pieces: each is a component file. An index names the
    piece of every tensor, as Hugging Face's do.

    Raises:
        CheckpointError: A tensor does not fit in a piece.
    """
    sections, tensors = read_component(path)
    metadata = _metadata(sections)
    room = max_bytes - len(lay_out(tensors, metadata)[0])  # no piece's header is longer than that of all
    pieces: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name in sorted(tensors):
        if tensors[name].nbytes > room:
            raise CheckpointError(
                f"{name} has {tensors[name].nbytes:,} bytes, too many for a piece of {max_bytes:,}"
            )
        if filled + tensors[name].nbytes > room:
            pieces.append({})
            filled = 0
        pieces[-1][name] = tensors[name]
        filled += tensors[name].nbytes
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{path.stem}-*-of-*.safetensors"):
        old.unlink()
    files = [folder / f"{path.stem}-{i + 1:05d}-of-{len(pieces):05d}.safetensors" for i in range(len(pieces))]
    for file, piece in zip(files, pieces, strict=True):
        write_safetensors(file, piece, metadata)
    homes = {name: file.name for file, piece in zip(files, pieces, strict=True) for name in piece}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": homes}
    (folder / f"{path.name}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return files


def _metadata(sections: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {name: sections[name] for name in METADATA_SECTIONS if name in sections}
    config = {name: section for name, section in sections.items() if name not in METADATA_SECTIONS}
    return metadata | {"config": config, "model_version": MODEL_VERSION, MARK_KEY: MARK}


def read_component(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_component` wrote; "embedded" is the model inside this package.

    Raises:
        CheckpointError: There is no such file, or it is something else.
    """
    if str(path) == EMBEDDED:
        path = EMBEDDED_FILE
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; train that part first")
    header = read_header(path)
    if "config" not in header.metadata:
        raise CheckpointError(f"{path} has no configuration; `soundstage train` writes parts with theirs")
    sections = dict(header.config)
    sections |= {name: header.metadata[name] for name in METADATA_SECTIONS if name in header.metadata}
    with safe_open(path, "pt") as file:
        return sections, {name: file.get_tensor(name) for name in header.tensors}


@torch.no_grad()
def warm_start(tensors: dict[str, Tensor], path: Path) -> None:
    """Fill a task's exported tensors, in place, from a file that holds them under the same names.

    Layers that older networks lack (`ADDED`) may be missing there: they begin as new.

    Raises:
        CheckpointError: The file lacks a tensor, has it in another shape, or has another tokenizer.
    """
    given = read_component(path)[1]
    for name, tensor in tensors.items():
        if name not in given and any(part in ADDED for part in name.split(".")):
            continue
        if name not in given or given[name].shape != tensor.shape:
            shape = tuple(given[name].shape) if name in given else "nothing"
            raise CheckpointError(f"init={path}: {name} is {shape} there, {tuple(tensor.shape)} here")
        if tensor.is_floating_point():
            tensor.copy_(given[name])
        elif not torch.equal(tensor.cpu(), given[name]):
            raise CheckpointError(f"init={path}: {name} differs, so weights that depend on it do not fit")


def assemble(
    paths: Sequence[Path],
    out: Path,
    dtype: torch.dtype,
    loras: Sequence[str] = (),
    base: Path | None = None,
) -> None:
    """Join component files into one model file.

    Args:
        base: A model that the files hold newer weights of; the rest is taken over from it.
        dtype: Number format of matrices and kernels; vectors are few and stay as they are. A kernel that
            float8 holds exactly, such as one of zeros, is stored in it.
        loras: LoRAs to add into the weights for good, as a request names them: "PATH[:STRENGTH]".

    Raises:
        CheckpointError: Two files hold the same tensor, or a LoRA or the base does not fit.
        RequestError: A LoRA is named wrongly, or for one stage.
    """
    sections: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for path in paths:
        more_sections, more_tensors = read_component(path)
        twice = sorted(tensors.keys() & more_tensors.keys())
        if twice:
            raise CheckpointError(f"{path} holds {twice[0]}, which another of the files holds too")
        sections |= more_sections
        tensors |= more_tensors
    if base is not None:
        base_sections, base_tensors = read_component(base)
        for name, tensor in tensors.items():
            if name not in base_tensors or base_tensors[name].shape != tensor.shape:
                raise CheckpointError(f"{name} of {tuple(tensor.shape)} has no such counterpart in {base}")
        sections, tensors = base_sections | sections, base_tensors | tensors
    add_loras(tensors, loras)
    write_component(out, sections, {name: _stored(t, dtype) for name, t in tensors.items()})


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Choose a tensor's format: that of matrices, or one byte where that is exact, as for silent kernels."""
    if not tensor.is_floating_point() or tensor.ndim < 2:
        return tensor
    small = tensor.to(torch.float8_e4m3fn)
    return small if torch.equal(small.float(), tensor.float()) else tensor.to(dtype)
