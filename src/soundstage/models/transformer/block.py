r"""One layer of the dual-stream transformer.

        video                                  audio
          |                                      |
    self-attention (3D RoPE)              self-attention (1D RoPE)
          |                                      |
    text attention                        text attention
          |  \______________  _________________/ |
          |                  \/                   |
    audio-to-video attention /\ video-to-audio attention     both read the streams as they are here
          |                                      |
    feed-forward                          feed-forward

Every step is a residual, normed without weights and modulated by the noise level (see modulation.py).

Source: LTX-2, arXiv 2601.03233.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import Context, Tokens
from soundstage.models.transformer.config import Stream, StreamConfig, TransformerConfig
from soundstage.models.transformer.inputs import BlockSkips, Skip
from soundstage.models.transformer.modulation import (
    A2V,
    FEED_FORWARD,
    GATE,
    SELF_ATTENTION,
    TEXT_ATTENTION,
    V2A,
    Modulation,
    modulate,
    new_table,
)
from soundstage.models.transformer.negative_text import NegativeText
from soundstage.nn.attention import Attention, TiledBias
from soundstage.nn.feed_forward import FeedForward
from soundstage.nn.norms import rms_norm
from soundstage.nn.rope import Rope

StreamTokens = dict[Stream, Tensor]  # (b, n, d) of each stream that is present


class CrossAttentionCall(NamedTuple):
    """One call of the attention between the streams, to be looked at."""

    reader: Stream  # the one whose tokens ask
    attention: Attention
    asking: Tensor  # (b, n, d), what queries are made of
    answering: Tensor  # (b, m, d), what keys are made of
    rope: Rope
    context_rope: Rope

    def shares(self, item: int, start: int = 0, stop: int | None = None) -> Float[Tensor, "heads n m"]:
        """Recompute how one item's tokens from `start` to `stop` share their attention, in float32."""
        one = slice(item, item + 1)
        query = self.attention.project_query(self.asking[one], self.rope)[:, start:stop]
        return self.attention.shares(
            query, self.attention.project_context(self.answering[one], self.context_rope).k
        )[0]


Watch = Callable[[CrossAttentionCall], None]


@dataclass(frozen=True, kw_only=True)
class StreamConditioning:
    """What a stream is conditioned on: all that blocks know besides its tokens, the same for every block."""

    modulation: Modulation
    output_modulation: Modulation  # not for the blocks but for the output layer
    rope: Rope
    context: Context
    context_bias: Float[Tensor, "b 1 1 s"] | TiledBias | None
    negative_text: NegativeText | None  # its context as wide as `context`
    context_modulation: Modulation | None  # 2.3 and later
    attention_bias: Float[Tensor, "#b 1 n n"] | TiledBias | None
    enabled: bool
    cross_rope: Rope  # on seconds alone
    cross_modulation: Modulation | None  # from the stream's own noise levels; None without the other stream
    cross_gate: Modulation | None  # from the other stream's level


class StreamLayers(NamedTuple):
    """One stream's own layers of a block, by role instead of by official name."""

    self_attention: Attention
    text_attention: Attention
    feed_forward: FeedForward
    table: Tensor
    context_table: Tensor | None


class TransformerBlock(nn.Module):
    """Video and audio layers side by side, joined by attention in both directions.

    Attributes bear the official names. Tables start at zero, so that a new block passes its tokens through.
    """

    attn1: Attention
    attn2: Attention
    ff: FeedForward
    scale_shift_table: nn.Parameter
    audio_attn1: Attention
    audio_attn2: Attention
    audio_ff: FeedForward
    audio_scale_shift_table: nn.Parameter
    audio_to_video_attn: Attention
    video_to_audio_attn: Attention
    scale_shift_table_a2v_ca_video: nn.Parameter
    scale_shift_table_a2v_ca_audio: nn.Parameter

    def __init__(self, config: TransformerConfig, streams: Sequence[Stream]) -> None:
        super().__init__()
        self.eps = config.norm_eps
        video, audio, rows = config.video, config.audio, config.modulation_rows
        self.prompt_scale_shift_table: nn.Parameter | None = None
        self.audio_prompt_scale_shift_table: nn.Parameter | None = None
        if "video" in streams:
            self.attn1 = _attention(config, video, video, video)
            self.attn2 = _attention(config, video, video, video, context_dim=video.context_dim)
            self.ff = FeedForward(video.dim, video.ff_dim, bias=video.ff_bias)
            self.scale_shift_table = new_table(rows, video.dim)
            if config.text_modulation:
                self.prompt_scale_shift_table = new_table(2, video.dim)
        if "audio" in streams:
            self.audio_attn1 = _attention(config, audio, audio, audio)
            self.audio_attn2 = _attention(config, audio, audio, audio, context_dim=audio.context_dim)
            self.audio_ff = FeedForward(audio.dim, audio.ff_dim, bias=audio.ff_bias)
            self.audio_scale_shift_table = new_table(rows, audio.dim)
            if config.text_modulation:
                self.audio_prompt_scale_shift_table = new_table(2, audio.dim)
        if "video" in streams and "audio" in streams:
            self.audio_to_video_attn = _attention(config, video, audio, audio)
            self.video_to_audio_attn = _attention(config, audio, video, audio)
            self.scale_shift_table_a2v_ca_video = new_table(5, video.dim)
            self.scale_shift_table_a2v_ca_audio = new_table(5, audio.dim)

    def layers(self, stream: Stream) -> StreamLayers:
        """Pick one stream's own layers."""
        if stream == "video":
            return StreamLayers(
                self.attn1, self.attn2, self.ff, self.scale_shift_table, self.prompt_scale_shift_table
            )
        return StreamLayers(
            self.audio_attn1,
            self.audio_attn2,
            self.audio_ff,
            self.audio_scale_shift_table,
            self.audio_prompt_scale_shift_table,
        )

    def forward(
        self,
        tokens: StreamTokens,
        given: Mapping[Stream, StreamConditioning],
        skips: BlockSkips,
        watch: Watch | None = None,
    ) -> StreamTokens:
        """Pass the streams that are present; a disabled one stands still and is only read by the other.

        Args:
            watch: Shown every call of the attention between the streams.
        """
        tokens = dict(tokens)
        enabled = [stream for stream in tokens if given[stream].enabled]
        for stream in enabled:
            layers = self.layers(stream)
            skip = skips.video_self_attention if stream == "video" else skips.audio_self_attention
            tokens[stream] = self.attend_to_self(tokens[stream], layers, given[stream], skip)
            tokens[stream] = self.attend_to_text(tokens[stream], layers, given[stream])
        if len(tokens) == 2:
            tokens = self.attend_to_each_other(tokens, given, skips, watch)
        for stream in enabled:
            tokens[stream] = self.feed_forward(tokens[stream], self.layers(stream), given[stream])
        return tokens

    def attend_to_self(
        self, x: Tokens, layers: StreamLayers, given: StreamConditioning, skip: Skip
    ) -> Tokens:
        """Let the tokens of one stream read each other."""
        shift, scale, gate = given.modulation.rows(layers.table, SELF_ATTENTION)
        heard = layers.self_attention(
            modulate(rms_norm(x, self.eps), scale=scale, shift=shift),
            rope=given.rope,
            bias=given.attention_bias,
            value_passthrough=skip,
        )
        return torch.addcmul(x, gate, heard)

    def attend_to_text(self, x: Tokens, layers: StreamLayers, given: StreamConditioning) -> Tokens:
        """Let the tokens read the prompt; from 2.3 on both are modulated and the result is gated."""
        normed, negative = rms_norm(x, self.eps), given.negative_text
        away = None if negative is None else negative.context
        if layers.context_table is None or given.context_modulation is None:
            heard = _read(layers.text_attention, normed, given.context, given, away)
            return x + heard
        shift, scale, gate = given.modulation.rows(layers.table, TEXT_ATTENTION)
        context_shift, context_scale = given.context_modulation.rows(layers.context_table)
        heard = _read(
            layers.text_attention,
            modulate(normed, scale=scale, shift=shift),
            modulate(given.context, scale=context_scale, shift=context_shift),
            given,
            None if away is None else modulate(away, scale=context_scale, shift=context_shift),
        )
        return torch.addcmul(x, gate, heard)

    def attend_to_each_other(
        self,
        tokens: StreamTokens,
        given: Mapping[Stream, StreamConditioning],
        skips: BlockSkips,
        watch: Watch | None = None,
    ) -> StreamTokens:
        """Let each stream read the other as it is now; RoPE on seconds tells what is simultaneous."""
        video, audio = given["video"], given["audio"]
        x, y = rms_norm(tokens["video"], self.eps), rms_norm(tokens["audio"], self.eps)
        cross_video, cross_audio = self.scale_shift_table_a2v_ca_video, self.scale_shift_table_a2v_ca_audio
        heard: StreamTokens = {}
        if video.enabled and skips.a2v is not True:
            heard["video"] = _gate(video, cross_video, skips.a2v) * _attend_across(
                CrossAttentionCall(
                    "video",
                    self.audio_to_video_attn,
                    _modulate_cross(x, video, cross_video, A2V),
                    _modulate_cross(y, audio, cross_audio, A2V),
                    video.cross_rope,
                    audio.cross_rope,
                ),
                watch,
            )
        if audio.enabled and skips.v2a is not True:
            heard["audio"] = _gate(audio, cross_audio, skips.v2a) * _attend_across(
                CrossAttentionCall(
                    "audio",
                    self.video_to_audio_attn,
                    _modulate_cross(y, audio, cross_audio, V2A),
                    _modulate_cross(x, video, cross_video, V2A),
                    audio.cross_rope,
                    video.cross_rope,
                ),
                watch,
            )
        return tokens | {stream: tokens[stream] + delta for stream, delta in heard.items()}

    def feed_forward(self, x: Tokens, layers: StreamLayers, given: StreamConditioning) -> Tokens:
        """Transform every token by itself."""
        shift, scale, gate = given.modulation.rows(layers.table, FEED_FORWARD)
        return torch.addcmul(
            x, gate, layers.feed_forward(modulate(rms_norm(x, self.eps), scale=scale, shift=shift))
        )


def _read(
    attention: Attention, x: Tensor, context: Tensor, given: StreamConditioning, away: Tensor | None
) -> Tensor:
    """Attend to the prompt, and if a negative text is given, steer away from what it would have said."""
    negative = given.negative_text
    if negative is None or away is None:
        heard: Tensor = attention(x, context, bias=given.context_bias)
        return heard
    query = attention.project_query(x)
    wanted = attention.mix(query, attention.project_context(context), bias=given.context_bias)
    unwanted = attention.mix(query, attention.project_context(away))
    return attention.combine(x, negative.steer(wanted, unwanted))


def _attend_across(call: CrossAttentionCall, watch: Watch | None) -> Tensor:
    if watch is not None:
        watch(call)
    heard: Tensor = call.attention(
        call.asking, call.answering, rope=call.rope, context_rope=call.context_rope
    )
    return heard


def _modulate_cross(x: Tensor, given: StreamConditioning, table: Tensor, direction: slice) -> Tensor:
    """Modulate one side of cross-modal attention."""
    assert given.cross_modulation is not None
    scale, shift = given.cross_modulation.rows(table, direction)
    return modulate(x, scale=scale, shift=shift)


def _gate(given: StreamConditioning, table: Tensor, skip: Skip) -> Tensor:
    """Gate what a stream hears of the other, shut for the items that skip it."""
    assert given.cross_gate is not None
    (gate,) = given.cross_gate.rows(table[GATE])
    return gate if isinstance(skip, bool) else gate.masked_fill(skip[:, None, None], 0)


def _attention(
    config: TransformerConfig,
    query: StreamConfig,
    context: StreamConfig,
    inner: StreamConfig,
    context_dim: int | None = None,
) -> Attention:
    """Make attention from one stream to another, with the heads of `inner`."""
    return Attention(
        query.dim,
        context.dim if context_dim is None else context_dim,
        heads=inner.heads,
        head_dim=inner.head_dim,
        gated=config.gated_attention,
        bias=config.attention_bias,
        eps=config.norm_eps,
    )
