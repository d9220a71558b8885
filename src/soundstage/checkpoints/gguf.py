"""Read what a GGUF file holds, as far as it is not tensor data; the tensors keep their official names.

Such files are made by others from the official ones. Most carry the transformer alone and drop the prefix of
its names and the configuration, which is then that of the release the names belong to. Text encoders are in
llama.cpp's names, which are translated.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soundstage.checkpoints.gguf_gemma import ARCHITECTURE, published_config, published_tensors
from soundstage.checkpoints.header import Header, TensorEntry
from soundstage.checkpoints.released import MODEL_VERSIONS, generation_of, released_configs
from soundstage.core.errors import CheckpointError
from soundstage.models.text.vocabulary import Vocabulary

SUFFIX = ".gguf"
PLAIN = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8")
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # of tensors that had to be stored in another one


def read_gguf(path: Path, *, require_data: bool = True) -> Header:
    """Read the header of one GGUF file.

    Args:
        require_data: Insist that the file is as long as its header says.

    Raises:
        CheckpointError: The file is missing, damaged, or in a format that is not read; or the `gguf` package
            is not installed.
    """
    reader = _open(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: _entry(path, tensor, fields) for tensor in reader.tensors}
    size = path.stat().st_size
    expected = max((entry.end for entry in tensors.values()), default=size)
    if require_data and size < expected:
        raise CheckpointError(
            f"{path} is truncated: {size:,} bytes are present, its header promises {expected:,}; "
            "finish or repeat the download"
        )
    metadata = _metadata(fields, tensors)
    if fields.get("general.architecture") == ARCHITECTURE:
        metadata["gemma_config"] = published_config(fields, tensors)
        tensors = published_tensors(tensors)
    return Header(
        path=path,
        metadata=metadata,
        tensors=tensors,
        file_bytes=size,
        expected_bytes=size if size >= expected else expected,
    )


def read_vocabulary(path: Path) -> Vocabulary | None:
    """Read the words of a language model's file; None if it has none, or not those of a SentencePiece model.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    fields = _open(path).fields
    names = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
    kind = fields.get("tokenizer.ggml.model")
    if kind is None or kind.contents() != "llama" or any(name not in fields for name in names):
        return None
    prefix = fields.get("tokenizer.ggml.add_space_prefix")
    if prefix is not None and prefix.contents():
        return None
    return Vocabulary(*(fields[name].contents() for name in names))


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(
            f"{path} is a GGUF file; reading it takes the gguf package: pip install 'soundstage[gguf]'"
        ) from error
    try:
        return GGUFReader(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or no GGUF file ({error}); download it again") from error


def _entry(path: Path, tensor: Any, fields: Mapping[str, Any]) -> TensorEntry:
    from soundstage.nn.gguf_formats import BLOCK_FORMATS  # brings torch, which other files do not need

    name = tensor.tensor_type.name
    if name not in (*PLAIN, *BLOCK_FORMATS):
        known = ", ".join([*PLAIN[1:4], *BLOCK_FORMATS])
        raise CheckpointError(
            f"{path}: {tensor.name} is in the format {name}, which is not read; use {known}"
        )
    shape = tuple(int(n) for n in reversed(tensor.shape))  # a GGUF file names the fastest axis first
    original = fields.get(f"{ORIGINAL_SHAPE}{tensor.name}")
    if original is not None:
        shape = tuple(int(n) for n in original)
    start = int(tensor.data_offset)
    return TensorEntry(name, shape, start, start + int(tensor.n_bytes))


def _metadata(fields: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> dict[str, Any]:
    """Take the file's own configuration, or that of the release whose names it has."""
    plain = (str, int, float, bool)
    metadata: dict[str, Any] = {name: value for name, value in fields.items() if isinstance(value, plain)}
    if isinstance(metadata.get("config"), str):
        try:
            metadata["config"] = json.loads(metadata["config"])
        except ValueError:
            del metadata["config"]
    generation = generation_of(tensors)
    if "config" not in metadata and generation is not None:
        metadata["config"] = {"transformer": released_configs()[generation]["transformer"]}
        metadata.setdefault("model_version", MODEL_VERSIONS[generation])
    return metadata
