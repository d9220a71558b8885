"""Encoded prompts kept on disk: the same prompt is encoded once per model, whatever the seed and the process.

A file's name is a hash of all that its contents depend on: the weights of the text encoder and of the
connectors, their number format, the text length and the prompt. The weights are known by their names, shapes
and a sample of their bytes; reading all of them would take longer than encoding. Whole files only, the least
recently used ones go first.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import RequestError, SoundstageError
from soundstage.core.files import check_folder, last_used
from soundstage.core.types import AV, Context

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "SOUNDSTAGE_PROMPT_CACHE"
MAX_BYTES = 2 * 10**9  # about 150 prompts of an official model
_FORMAT = 1  # raised when what is stored changes its meaning
_ANY = "*"
_SUFFIX, _TEXT = ".safetensors", "text"


def cache_folder() -> Path:
    """Return where encoded prompts are kept unless the user says otherwise."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "soundstage" / "prompts"


class PromptCache:
    """Contexts, and prompts rewritten by the text encoder, in one folder."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Use a folder, made when it is missing.

        Raises:
            RequestError: It cannot be written to.
        """
        try:
            check_folder(folder)
        except RequestError as error:
            raise RequestError(f"prompt cache: {error}; --prompt-cache off does without") from error
        self.folder = folder
        self.max_bytes = max_bytes

    def get(self, key: str, encoder: str | None) -> AV[Context] | None:
        """Return what was stored; None if nothing is there.

        Args:
            encoder: Fingerprint of the text encoder; None when it is not here, which takes what any stored.
        """
        tensors = self._read(key, encoder)
        if tensors is None:
            return None
        return AV(tensors.get("video"), tensors.get("audio"))

    def put(self, key: str, encoder: str, contexts: AV[Context]) -> None:
        """Store contexts; a cache that cannot be written is reported and does no other harm."""
        pairs = {"video": contexts.video, "audio": contexts.audio}
        self._write(key, encoder, {name: x.cpu().contiguous() for name, x in pairs.items() if x is not None})

    def get_text(self, key: str, encoder: str | None) -> str | None:
        """Return a text that was stored; None if nothing is there."""
        tensors = self._read(key, encoder)
        return None if tensors is None else tensors[_TEXT].numpy().tobytes().decode()

    def put_text(self, key: str, encoder: str, text: str) -> None:
        """Store a text."""
        self._write(key, encoder, {_TEXT: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)})

    def is_empty(self, prefix: str) -> bool:
        """Tell whether nothing is stored under keys that begin so."""
        return next(self.folder.glob(f"{prefix}*{_SUFFIX}"), None) is None

    def _read(self, key: str, encoder: str | None) -> dict[str, Tensor] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found = self.folder.glob(f"{key}-{encoder or _ANY}{_SUFFIX}")
        for path in sorted(found, key=last_used, reverse=True):
            try:
                tensors: dict[str, Tensor] = load_file(path)
                os.utime(path)
            except (SafetensorError, OSError) as error:
                logger.warning("an encoded prompt cannot be read and is made again: %s: %s", path, error)
                continue
            return tensors
        return None

    def _write(self, key: str, encoder: str, tensors: Mapping[str, Tensor]) -> None:
        try:
            write_safetensors(self.folder / f"{key}-{encoder}{_SUFFIX}", tensors, {})
            self._make_room()
        except (SoundstageError, OSError) as error:
            logger.warning("an encoded prompt is not kept: %s", error)

    def _make_room(self) -> None:
        """Remove the least recently used files until the rest fits; what was just written stays."""
        files = sorted(self.folder.glob(f"*{_SUFFIX}"), key=last_used, reverse=True)
        total = 0
        for number, path in enumerate(files):
            total += _size(path)
            if total > self.max_bytes and number > 0:
                path.unlink(missing_ok=True)


def cache_key(connectors: str, parts: Iterable[str | int]) -> str:
    """Name what is stored: the connectors' fingerprint, then a hash of everything else but the encoder."""
    text = json.dumps([_FORMAT, *parts])
    return f"{connectors}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
