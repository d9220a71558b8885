"""Prompts to the contexts that the diffusion transformer attends to: the whole text side in one module."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from soundstage.core.errors import CheckpointError
from soundstage.core.types import AV, Context, ContextMask
from soundstage.models.text.connectors import TextConnectors
from soundstage.models.text.gemma import GemmaTower
from soundstage.models.text.tokenizer import Tokenizer


class TextEncoder(nn.Module):
    """The whole text side. Tower and connectors may live on different devices and in different dtypes."""

    def __init__(self, tokenizer: Tokenizer, gemma: GemmaTower, connectors: TextConnectors) -> None:
        """Join the parts.

        Raises:
            CheckpointError: They do not belong together.
        """
        super().__init__()
        config = connectors.config
        if (gemma.hidden_size, gemma.num_states) != (config.hidden_size, config.num_states):
            raise CheckpointError(
                f"the text encoder gives {gemma.num_states} hidden states of width {gemma.hidden_size}; this "
                f"checkpoint was trained with {config.num_states} of width {config.hidden_size}"
            )
        if tokenizer.vocab_size > gemma.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the text encoder {gemma.vocab_size}; "
                "take both from the same directory"
            )
        if tokenizer.max_length % config.num_registers:
            raise CheckpointError(
                f"text length {tokenizer.max_length} is no multiple of the {config.num_registers} registers"
            )
        self.tokenizer = tokenizer
        self.gemma = gemma
        self.connectors = connectors

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> AV[Context]:
        """Encode prompts for generation; the empty prompt is legal.

        One at a time, and without its padding, which would be most of the work: a prompt's context depends
        on nothing but the prompt, bit for bit.
        """
        contexts = [self._encode_one(prompt) for prompt in prompts]
        video = [context.video for context in contexts if context.video is not None]
        audio = [context.audio for context in contexts if context.audio is not None]
        return AV(torch.cat(video) if video else None, torch.cat(audio) if audio else None)

    def forward(
        self, input_ids: Int[Tensor, "b s"], attention_mask: ContextMask, length: int | None = None
    ) -> AV[Context]:
        """Encode left-padded tokens, differentiably.

        Args:
            length: Positions of the contexts; the given tokens are the last ones of them. As many as given
                when absent.
        """
        length = input_ids.shape[1] if length is None else length
        states = self.gemma.hidden_states(
            input_ids, attention_mask, first_position=length - input_ids.shape[1]
        )
        contexts: AV[Context] = self.connectors(states, attention_mask, length)
        return contexts

    def _encode_one(self, prompt: str) -> AV[Context]:
        tokens = self.tokenizer.tokenize([prompt])
        padding = self.tokenizer.max_length - int(tokens.attention_mask.sum())
        device = self.gemma.device
        contexts: AV[Context] = self(
            tokens.input_ids[:, padding:].to(device),
            tokens.attention_mask[:, padding:].to(device),
            length=self.tokenizer.max_length,
        )
        return contexts
