"""A model's text side, as much of it as is needed: remembered, from the disk, or computed.

prompt ──▶ met before in this process? ──▶ in the cache on disk? ──▶ text encoder, loaded if it comes to that
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.checkpoints.fingerprint import fingerprint
from soundstage.core.errors import CheckpointError, RequestError
from soundstage.core.progress import OnProgress
from soundstage.core.types import AV, Context
from soundstage.models.text.text_encoder import TextEncoder
from soundstage.models.text.tokenizer import Tokenizer
from soundstage.models.transformer.config import STREAMS, Stream
from soundstage.pipelines.loading import AS_STORED, Component, load_checkpoint
from soundstage.pipelines.placed import EVERYWHERE, Placed
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.prompt_cache import PromptCache, cache_key
from soundstage.pipelines.text_source import TextSource, text_length, text_source
from soundstage.runtime.residency import bring

MAX_KEPT_CONTEXTS = 16
TEXT_ALONE: tuple[Component, ...] = ("text",)


class PromptEncoder:
    """Encodes prompts for one model."""

    def __init__(
        self,
        load: Callable[[], TextEncoder],
        tokenizer: Tokenizer | None,
        store: "PromptStore | None" = None,
    ) -> None:
        """Take what encoding needs.

        Args:
            load: Returns the text encoder, or raises `CheckpointError` when there is none.
            tokenizer: None when there is none either; then only what is stored can be used.
            store: Where encoded prompts of this model are kept.
        """
        self._load = load
        self.tokenizer = tokenizer
        self.store = store
        self._contexts: dict[str, AV[Context]] = {}

    @classmethod
    def of(cls, text: TextEncoder) -> "PromptEncoder":
        """Use a text encoder that is loaded."""
        return cls(lambda: text, text.tokenizer)

    @classmethod
    def lazy(
        cls,
        checkpoint: Checkpoint,
        directory: Path | None,
        cache: PromptCache,
        *,
        device: torch.device,
        dtype: torch.dtype,
        streams: Sequence[Stream] = STREAMS,
        placed: Placed = EVERYWHERE,
        on_progress: OnProgress | None = None,
    ) -> "PromptEncoder":
        """Load the text encoder only when a prompt is met that the cache does not hold.

        Args:
            streams: Whose contexts to make.
            placed: Where its weights will be.

        Raises:
            CheckpointError: There is no text encoder, and the cache holds no prompt of this model.
        """

        def load() -> TextEncoder:
            components = load_checkpoint(
                checkpoint,
                device=placed.loading_device(device),
                dtype=dtype,
                components=TEXT_ALONE,
                streams=streams,
                text_encoder=directory,
                placing=placed.placing,
                mapped=placed.mapped,
                on_progress=on_progress,
            )
            text = placed.take(components, device).text
            assert text is not None
            return text

        store = PromptStore(
            cache, checkpoint, device=device, dtype=dtype, streams=streams, placing=placed.placing
        )
        try:
            source = text_source(checkpoint, directory)
        except CheckpointError:
            if directory is not None or store.is_empty:
                raise
            return cls(load, None, store)
        store.know(source)
        return cls(load, source.tokenizer, store)

    def apart(self) -> "PromptEncoder":
        """Make one that uses the same text encoder and neither reads nor keeps what was encoded."""
        return PromptEncoder(lambda: self.text, self.tokenizer)

    @cached_property
    def text(self) -> TextEncoder:
        """The text encoder, loaded now if it was not.

        Raises:
            CheckpointError: It is missing.
        """
        return self._load()

    def encode(self, prompt: str) -> AV[Context]:
        """Encode one prompt, or remember it."""
        if prompt not in self._contexts:
            if len(self._contexts) >= MAX_KEPT_CONTEXTS:
                self._contexts.pop(next(iter(self._contexts)))
            self._contexts[prompt] = self._stored(prompt) or self._compute(prompt)
        return self._contexts[prompt]

    def check_length(self, prompt: str) -> None:
        """Refuse a prompt of which the model would read only the beginning.

        Raises:
            RequestError: It is too long; says how long it may be.
            CheckpointError: There is no text encoder, and the prompt is not stored.
        """
        if self.tokenizer is None:
            if prompt not in self._contexts and self._stored(prompt) is None:
                _ = self.text  # says what is missing
            return
        limit, count = self.tokenizer.max_length, len(self.tokenizer.ids(prompt))
        if count > limit:
            words = len(prompt.split())
            raise RequestError(
                f"a prompt of {words} words has {count} tokens; this model reads {limit}, "
                f"about {max(words * limit // count, 1)} words"
            )

    def _stored(self, prompt: str) -> AV[Context] | None:
        return None if self.store is None else self.store.context(prompt)

    def _compute(self, prompt: str) -> AV[Context]:
        bring(self.text.gemma)
        contexts = self.text.encode([prompt])
        if self.store is not None:
            self.store.keep(prompt, contexts)
        return contexts


class PromptStore:
    """The part of a cache that belongs to one model."""

    def __init__(
        self,
        cache: PromptCache,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        streams: Sequence[Stream] = STREAMS,
        placing: Placing = AS_STORED,
    ) -> None:
        self.cache = cache
        chosen = placing.quantize_text
        self._format = [] if chosen is None else [chosen, *placing.quantize_text_skip]
        # Contexts of both streams serve every model; those of one are kept under a name of their own.
        self._own = "context" if tuple(streams) == STREAMS else f"context of {'+'.join(streams)}"
        self._device, self._dtype = device, dtype
        self._length = text_length(checkpoint)
        self._connectors = fingerprint(checkpoint.part(keymap.CONNECTORS))
        self._encoder: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no prompt of this model is stored, whichever text encoder made it."""
        return self.cache.is_empty(self._connectors)

    def know(self, source: TextSource) -> None:
        """Tell which text encoder is here; only its own results are used from then on."""
        weights = source.tower.part(keymap.TEXT_TOWER)
        words = hashlib.sha256(source.tokenizer.to_bytes()).hexdigest()
        self._encoder = f"{fingerprint(weights)}{words[:8]}"

    def context(self, prompt: str) -> AV[Context] | None:
        """Return a stored context, where the model computes."""
        for kind in dict.fromkeys((self._own, "context")):
            found = self.cache.get(self._key(kind, prompt), self._encoder)
            if found is not None:
                return found.map(lambda context: context.to(self._device))
        return None

    def keep(self, prompt: str, contexts: AV[Context]) -> None:
        """Store a context."""
        if self._encoder is not None:
            self.cache.put(self._key(self._own, prompt), self._encoder, contexts)

    def text(self, *parts: str | int) -> str | None:
        """Return a stored text that was made of `parts`."""
        return self.cache.get_text(self._key("text", *parts), self._encoder)

    def keep_text(self, text: str, *parts: str | int) -> None:
        """Store a text that was made of `parts`."""
        if self._encoder is not None:
            self.cache.put_text(self._key("text", *parts), self._encoder, text)

    def _key(self, kind: str, *parts: str | int) -> str:
        cleaned = [part.strip() if isinstance(part, str) else part for part in parts]
        return cache_key(self._connectors, [kind, str(self._dtype), self._length, *self._format, *cleaned])
