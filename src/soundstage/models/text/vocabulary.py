"""The words of a SentencePiece model, written as a `tokenizer.json` that cuts text in the same way.

Such a model joins, again and again, the two neighbours whose union has the best score. A BPE does the same
when every way to cut a word in two is a merge, ranked by the score of the word.

Source: Kudo & Richardson 2018, "SentencePiece", section 3.2; token kinds of the GGUF specification.
"""

import json
from typing import Any, NamedTuple

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of words, as GGUF numbers them
JOINED = (NORMAL, USER_DEFINED)  # kinds that may come of joining


class Vocabulary(NamedTuple):
    """All words by their ids."""

    words: list[str]
    scores: list[float]  # the higher, the sooner joined
    kinds: list[int]

    def tokenizer_json(self) -> bytes:
        """Write the tokenizer. Nothing is put before a text, and runs of spaces stay as they are."""
        unknown = next(
            (word for word, kind in zip(self.words, self.kinds, strict=True) if kind == UNKNOWN), None
        )
        spaced = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        content = {
            "version": "1.0",
            "added_tokens": self._added(),
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            "decoder": {"type": "Sequence", "decoders": [spaced, {"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {
                "type": "BPE",
                "unk_token": unknown,
                "fuse_unk": True,
                "byte_fallback": BYTE in self.kinds,
                "vocab": {word: index for index, word in enumerate(self.words)},
                "merges": self._merges(),
            },
        }
        return json.dumps(content, ensure_ascii=False).encode()

    def _added(self) -> list[dict[str, Any]]:
        """List the words that are found before any joining."""
        plain = {"single_word": False, "lstrip": False, "rstrip": False}
        return [
            {
                "id": index,
                "content": word,
                "special": kind != USER_DEFINED,
                "normalized": kind == USER_DEFINED,
                **plain,
            }
            for index, (word, kind) in enumerate(zip(self.words, self.kinds, strict=True))
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def _merges(self) -> list[tuple[str, str]]:
        """List every way to cut a word in two words, the best words first."""
        known = {word for word, kind in zip(self.words, self.kinds, strict=True) if kind in JOINED}
        ranked = sorted(range(len(self.words)), key=lambda index: -self.scores[index])
        return [
            (word[:cut], word[cut:])
            for word in (self.words[index] for index in ranked)
            if word in known
            for cut in range(1, len(word))
            if word[:cut] in known and word[cut:] in known
        ]
