"""From text features to the context of each stream: registers for the unused positions, then a few blocks.

A prompt rarely fills all positions. Instead of masking the rest, learned vectors take their place and attend
together with the words: room to think in, and a context without a mask.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.errors import ConfigError
from soundstage.core.types import AV, Context, ContextMask
from soundstage.models.text.config import ConnectorConfig, TextConfig
from soundstage.models.text.features import FEATURES, HiddenStates
from soundstage.models.transformer.config import STREAMS
from soundstage.nn.attention import Attention
from soundstage.nn.feed_forward import FeedForward
from soundstage.nn.norms import rms_norm
from soundstage.nn.rope import Rope, rope_table

EPS = 1e-6


class TextConnectors(nn.Module):
    """All that lies between the text encoder and the diffusion transformer.

    Args:
        streams: Whose contexts to make; the other's is absent.

    Source: LTX-2, arXiv 2601.03233, section on text conditioning: multi-layer features, thinking tokens.
    """

    def __init__(self, config: TextConfig, streams: Sequence[str] = STREAMS) -> None:
        super().__init__()
        self.config = config
        self.text_embedding_projection = FEATURES[config.features](config, streams)
        self.video_embeddings_connector = self.audio_embeddings_connector = None
        if "video" in streams:
            self.video_embeddings_connector = EmbeddingsConnector(config.video)
        if "audio" in streams:
            self.audio_embeddings_connector = EmbeddingsConnector(config.audio)

    def forward(
        self, hidden_states: HiddenStates, mask: ContextMask, length: int | None = None
    ) -> AV[Context]:
        """Make both contexts; every position of them is meant to be attended to.

        Args:
            mask: 1 on words, 0 on padding, on either side; what padding holds does not matter.
            length: Positions of the contexts; as many as `hidden_states` has when absent. More positions
                than that give the same contexts as padding to them beforehand would, only faster.

        Raises:
            ConfigError: The length is not a multiple of the number of registers.
        """
        features: AV[Context] = self.text_embedding_projection(hidden_states, mask)

        def connect(connector: nn.Module | None, given: Tensor | None) -> Tensor | None:
            return None if connector is None or given is None else connector(given, mask, length)

        return AV(
            connect(self.video_embeddings_connector, features.video),
            connect(self.audio_embeddings_connector, features.audio),
        )


class EmbeddingsConnector(nn.Module):
    """One stream's connector: words first, registers after them, bidirectional blocks, a final norm."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        registers = torch.empty(config.num_registers, config.dim)
        if not registers.is_meta:  # drawing on `meta` would import torch's compiler, for seconds
            registers.normal_(std=config.registers_std)
        self.learnable_registers = nn.Parameter(registers)
        self.transformer_1d_blocks = nn.ModuleList(ConnectorBlock(config) for _ in range(config.num_layers))

    def forward(
        self, features: Float[Tensor, "b s d"], mask: ContextMask, length: int | None = None
    ) -> Float[Tensor, "b length d"]:
        """Turn features into a context of `length` positions without padding."""
        x = self.fill_with_registers(features, mask, features.shape[1] if length is None else length)
        rope = self._rope(x)
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return rms_norm(x, EPS) if self.config.norm_output else x

    def fill_with_registers(
        self, features: Float[Tensor, "b s d"], mask: ContextMask, length: int
    ) -> Float[Tensor, "b length d"]:
        """Move the words to the front; position p behind them gets register p mod `num_registers`."""
        num_tokens, num_registers = features.shape[1], self.config.num_registers
        rounds, rest = divmod(length, num_registers)
        if rest or length < num_tokens:
            raise ConfigError(
                f"text length {length} must be a multiple of the {num_registers} registers and hold "
                f"{num_tokens} tokens; use {-(-num_tokens // num_registers) * num_registers}"
            )
        valid = mask.to(features.device).bool()
        order = valid.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        words = features.gather(1, order.unsqueeze(-1).expand_as(features))
        words = F.pad(words, (0, 0, 0, length - num_tokens))
        is_word = torch.arange(length, device=features.device) < valid.sum(1, keepdim=True)  # (b, length)
        return torch.where(is_word.unsqueeze(-1), words, self.learnable_registers.repeat(rounds, 1).to(words))

    def _rope(self, x: Float[Tensor, "b n d"]) -> Rope:
        config = self.config
        return rope_table(
            torch.arange(x.shape[1], dtype=torch.float32, device=x.device).view(1, 1, -1),
            [config.max_position],
            config.dim,
            config.num_heads,
            config.rope_theta,
            config.rope_kind,
            config.rope_precision,
        )


class ConnectorBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, both residual."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.attn1 = Attention(
            config.dim, heads=config.num_heads, head_dim=config.head_dim, gated=config.gated
        )
        self.ff = FeedForward(config.dim, 4 * config.dim, bias=config.ff_bias)

    def forward(self, x: Float[Tensor, "b n d"], rope: Rope) -> Float[Tensor, "b n d"]:
        """Refine every position by all others."""
        x = x + self.attn1(rms_norm(x, EPS), rope=rope)
        out: Tensor = x + self.ff(rms_norm(x, EPS))
        return out
