"""Prompts to token ids, as the text encoder wants them: `<bos>` first, padding on the left."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from soundstage.core.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 1024
PAD, EOS, BOS, UNK = SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")  # Gemma's, at its ids 0 to 3
NUM_BYTES = 256


class TokenizedText(NamedTuple):
    """Token ids and a mask that is 1 on tokens and 0 on padding."""

    input_ids: Int[Tensor, "b s"]
    attention_mask: Int[Tensor, "b s"]


class Tokenizer:
    """A Hugging Face `tokenizer.json` with Gemma's special tokens.

    `<bos>` is put in front here: Gemma-3's file does it by a template, Gemma-4's does not, and every prompt
    needs exactly one. Nothing is put at the end.
    """

    def __init__(self, content: bytes, max_length: int = DEFAULT_MAX_LENGTH) -> None:
        """Read the bytes of a `tokenizer.json`.

        Raises:
            CheckpointError: They are not a tokenizer, or one without Gemma's special tokens.
        """
        import tokenizers

        if max_length < 2:
            raise ConfigError(f"max_length={max_length} leaves no room for text; at least 2 is needed")
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more specific
            raise CheckpointError(f"not a tokenizer.json: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._content = content
        self.max_length = max_length
        self.bos_id = self._special_id(BOS)
        self.pad_id = self._special_id(PAD, EOS)
        self.eos_id = self.token_id(EOS)

    @classmethod
    def from_bytes(cls, content: bytes, max_length: int = DEFAULT_MAX_LENGTH) -> "Tokenizer":
        """Read the bytes of a `tokenizer.json`, as checkpoints embed them."""
        return cls(content, max_length)

    @classmethod
    def from_directory(cls, path: Path, max_length: int = DEFAULT_MAX_LENGTH) -> "Tokenizer":
        """Read `tokenizer.json` of a Hugging Face directory.

        Raises:
            CheckpointError: The directory has none, or it is unusable.
        """
        file = path / "tokenizer.json"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{file} cannot be read; it comes with the text encoder's weights"
            ) from error
        return cls(content, max_length)

    @property
    def vocab_size(self) -> int:
        """Number of distinct tokens."""
        return int(self._tokenizer.get_vocab_size())

    def to_bytes(self) -> bytes:
        """Return the `tokenizer.json` this was read from."""
        return self._content

    def ids(self, prompt: str, *, strip: bool = True) -> list[int]:
        """Tokenize one prompt without limit: `<bos>`, then the text stripped of surrounding whitespace."""
        text = prompt.strip() if strip else prompt
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Write tokens as text, without special ones."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_id(self, name: str) -> int | None:
        """Look up a special token; None where the vocabulary has none of that name."""
        found: int | None = self._tokenizer.token_to_id(name)
        return found

    def tokenize(self, prompts: Sequence[str]) -> TokenizedText:
        """Tokenize a batch, padded to `max_length`. What does not fit is cut off, with a logged warning."""
        rows = [self._fit(self.ids(prompt)) for prompt in prompts]
        padding = [self.max_length - len(row) for row in rows]
        input_ids = [[self.pad_id] * pad + row for pad, row in zip(padding, rows, strict=True)]
        mask = [[0] * pad + [1] * len(row) for pad, row in zip(padding, rows, strict=True)]
        shape = (len(rows), self.max_length)
        return TokenizedText(
            torch.tensor(input_ids, dtype=torch.int64).view(shape),
            torch.tensor(mask, dtype=torch.int64).view(shape),
        )

    def _fit(self, ids: list[int]) -> list[int]:
        dropped = len(ids) - self.max_length
        if dropped > 0:
            logger.warning(
                "the prompt has %d tokens, %d are read; the last %d were dropped",
                len(ids), self.max_length, dropped,
            )  # fmt: skip
        return ids[: self.max_length]

    def _special_id(self, *names: str) -> int:
        for name in names:
            found: int | None = self._tokenizer.token_to_id(name)
            if found is not None:
                return found
        raise CheckpointError(f"the tokenizer has no {' or '.join(names)} token; a Gemma tokenizer is needed")


def train_tokenizer(captions: Iterable[str], vocab_size: int = 512) -> bytes:
    """Train a small byte-level BPE on captions and return its `tokenizer.json`.

    Frequent words become one token each; any other text still encodes, byte by byte at worst. Letter case is
    dropped. The same captions in the same order give the same bytes.

    Raises:
        ConfigError: `vocab_size` cannot even hold the special tokens and the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    smallest = len(SPECIAL_TOKENS) + NUM_BYTES
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size={vocab_size} is too small; at least {smallest} is needed")
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")).encode()
