"""How much one forward of the transformer computes, part by part; needs the configuration alone.

Two floating-point operations per multiply-add; matrix products and attention only. Norms, modulation and the
sinusoids of noise levels stay below 0.1 % at real sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from soundstage.models.transformer.config import StreamConfig, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """Operations of one forward of one batch item, by part."""

    linear: Mapping[str, int] = field(default_factory=dict)
    attention: Mapping[str, int] = field(default_factory=dict)  # scores and mixing of values

    @property
    def total(self) -> int:
        """All of them."""
        return self.total_linear + self.total_attention

    @property
    def total_linear(self) -> int:
        """Of the linear layers."""
        return sum(self.linear.values())

    @property
    def total_attention(self) -> int:
        """Of scores and mixing."""
        return sum(self.attention.values())

    @property
    def in_blocks(self) -> int:
        """Without the layers before and after the blocks."""
        return self.total - self.linear["in and out"] - self.linear.get("caption projection", 0)

    @property
    def across(self) -> int:
        """Of the attention between the streams, which a pass with isolated streams does not need."""
        return sum(
            n for part in (self.linear, self.attention) for name, n in part.items() if "across" in name
        )

    @property
    def text_constant(self) -> int:
        """Of what depends on the prompt alone where text is not modulated: the same in every step."""
        return self.linear.get("text keys and values", 0) + self.linear.get("caption projection", 0)


def forward_flops(
    config: TransformerConfig, *, num_video_tokens: int, num_audio_tokens: int, num_text_tokens: int
) -> ForwardFlops:
    """Count one forward of one item; a stream with no tokens is absent.

    Source: LTX-2, arXiv 2601.03233, for the layers; the count agrees with `torch.utils.flop_counter`.
    """
    tokens = {"video": num_video_tokens, "audio": num_audio_tokens}
    streams = {"video": config.video, "audio": config.audio}
    present = {name: stream for name, stream in streams.items() if tokens[name]}
    linear: dict[str, int] = {}
    attention: dict[str, int] = {}
    text_key_values = captions = 0
    for name, stream in present.items():
        n, d, s = tokens[name], stream.dim, num_text_tokens
        linear[f"{name} self-attention"] = n * 4 * d * d
        linear[f"{name} text queries and outputs"] = n * 2 * d * d
        linear[f"{name} feed-forward"] = n * 2 * d * stream.ff_dim
        attention[f"{name} self-attention"] = 2 * n * n * d
        attention[f"{name} text attention"] = 2 * n * s * d
        text_key_values += 2 * s * stream.context_dim * d
        if config.gated_attention:
            linear[f"{name} gates"] = 2 * n * d * stream.heads
        if config.caption_channels is not None:
            captions += s * (config.caption_channels * d + d * d)
    if len(present) == 2:
        linear |= _linear_across(config.video, config.audio, tokens, gated=config.gated_attention)
        attention["across"] = 4 * num_video_tokens * num_audio_tokens * config.audio.dim
    linear["text keys and values"] = text_key_values
    per_forward = {name: 2 * config.num_layers * macs for name, macs in linear.items()}
    if captions:
        per_forward["caption projection"] = 2 * captions
    per_forward["in and out"] = 2 * sum(
        tokens[name] * stream.dim * (stream.in_channels + stream.out_channels)
        for name, stream in present.items()
    )
    return ForwardFlops(
        linear=per_forward,
        attention={name: 2 * config.num_layers * macs for name, macs in attention.items()},
    )


def _linear_across(
    video: StreamConfig, audio: StreamConfig, tokens: Mapping[str, int], *, gated: bool
) -> dict[str, int]:
    """Count a block's linear layers between the streams; inside, both directions are as wide as the sound."""
    counts = {
        "across, on video tokens": tokens["video"] * 4 * video.dim * audio.dim,
        "across, on audio tokens": tokens["audio"] * 4 * audio.dim * audio.dim,
    }
    if gated:
        counts["across, gates"] = audio.heads * (tokens["video"] * video.dim + tokens["audio"] * audio.dim)
    return counts
