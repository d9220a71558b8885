"""Find the text encoder of a model: inside its file, in a directory or GGUF file, or among downloads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from soundstage.checkpoints.gguf import SUFFIX, read_vocabulary
from soundstage.checkpoints.reading import read_tensors
from soundstage.checkpoints.releases import GEMMA, RELEASES, find_release, missing_message
from soundstage.core.errors import CheckpointError
from soundstage.models.text.gemma import WANTED
from soundstage.models.text.tokenizer import DEFAULT_MAX_LENGTH, Tokenizer


class TextSource(NamedTuple):
    """A text encoder as it lies on disk, none of its weights read."""

    tower: Checkpoint
    hf_config: Mapping[str, Any]
    tokenizer: Tokenizer


def text_length(checkpoint: Checkpoint) -> int:
    """Return how many tokens of a prompt a model reads."""
    return int((checkpoint.config.get("text_encoder") or {}).get("max_length", DEFAULT_MAX_LENGTH))


def text_source(checkpoint: Checkpoint, directory: Path | None) -> TextSource:
    """Find the text encoder: in the checkpoint itself, in the directory given, or where downloads lie.

    Raises:
        CheckpointError: It is missing or of another kind; says what to do.
    """
    max_length = text_length(checkpoint)
    if directory is None and keymap.TEXT_TOWER in checkpoint.parts:
        hf_config = checkpoint.metadata.get("gemma_config")
        if not isinstance(hf_config, Mapping):
            raise CheckpointError(f"{checkpoint.label} holds a text encoder without its 'gemma_config'")
        return TextSource(checkpoint, hf_config, _stored_tokenizer(checkpoint, max_length))
    if not checkpoint.generation.reads_gemma_3:  # which is as wide and deep, so it would seem to work
        raise CheckpointError(
            f"{checkpoint.label} reads prompts with a text encoder of its own, "
            f"{checkpoint.generation.text_encoder}, which soundstage does not compute yet; what another one "
            "says would mean nothing to it. LTX-2.3 and 2.0 work with Gemma-3"
        )
    if directory is None:
        found = find_release(RELEASES[GEMMA])
        if found is None:
            raise CheckpointError(
                f"{checkpoint.label} needs its text encoder, {checkpoint.generation.text_encoder}: "
                f"{missing_message(RELEASES[GEMMA])}; or name its directory with --text-encoder"
            )
        directory = found[0]
    if directory.suffix.lower() == SUFFIX and not directory.is_dir():
        return _gguf_source(directory, max_length)
    if not directory.is_dir():
        raise CheckpointError(
            f"text encoder {directory} is not a directory with config.json and weights, and no {SUFFIX} file"
        )
    tower = open_checkpoint(directory)
    config = _read_json(directory / "config.json")
    return TextSource(tower, config, Tokenizer.from_directory(directory, max_length))


def _gguf_source(file: Path, max_length: int) -> TextSource:
    """Open a text encoder in a GGUF file; its tokenizer lies beside it, or is made of the file's words."""
    tower = open_checkpoint(file)
    hf_config = tower.metadata.get("gemma_config")
    if not isinstance(hf_config, Mapping):
        kind = tower.metadata.get("general.architecture", "unknown")
        raise CheckpointError(
            f"{file} holds a model of the architecture {kind!r}; what is needed is {WANTED}"
        )
    tower.part(keymap.TEXT_TOWER)
    if (file.parent / "tokenizer.json").exists():
        return TextSource(tower, hf_config, Tokenizer.from_directory(file.parent, max_length))
    stored = tower.metadata.get("tokenizer.huggingface.json")
    vocabulary = None if stored else read_vocabulary(file)
    if not stored and vocabulary is None:
        raise CheckpointError(
            f"{file} has no tokenizer that can be read; put tokenizer.json of the model it was made from "
            f"(of Gemma-3, such as google/gemma-3-12b-it) beside it, as {file.parent / 'tokenizer.json'}"
        )
    content = str(stored).encode() if vocabulary is None else vocabulary.tokenizer_json()
    return TextSource(tower, hf_config, Tokenizer.from_bytes(content, max_length))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read; it comes with the text encoder's weights") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} is not the configuration of a text encoder")
    return content


def _stored_tokenizer(checkpoint: Checkpoint, max_length: int) -> Tokenizer:
    stored: Mapping[str, StoredTensor] = checkpoint.part(keymap.TOKENIZER)
    tensors = read_tensors({"tokenizer_json": stored["tokenizer_json"]})
    return Tokenizer.from_bytes(tensors["tokenizer_json"].numpy().tobytes(), max_length)
