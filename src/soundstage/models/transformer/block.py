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

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import Tokens
from soundstage.models.transformer.conditioning import (
    StreamConditioning,
    TextConditioning,
    spread_bias,
    spread_keys_values,
    spread_rope,
)
from soundstage.models.transformer.config import STREAMS, Stream, StreamConfig, TransformerConfig
from soundstage.models.transformer.inputs import BlockSkips
from soundstage.models.transformer.modulation import (
    A2V,
    ACROSS,
    FEED_FORWARD,
    GATE,
    SELF_ATTENTION,
    TEXT_ATTENTION,
    V2A,
    Modulation,
    new_table,
)
from soundstage.models.transformer.picking import take
from soundstage.models.transformer.rows import Part, Rows, add
from soundstage.nn.attention import Attention, KeyValue
from soundstage.nn.feed_forward import FeedForward
from soundstage.nn.kernels.choice import TORCH, Kernels
from soundstage.nn.kernels.plain import ScaleShift
from soundstage.nn.norms import rms_norm
from soundstage.nn.rope import Rope

StreamTokens = dict[Stream, Tensor]  # (b, n, d) of each stream that is present


class CrossAttentionCall(NamedTuple):
    """A call of the attention between the streams."""

    reader: Stream  # the one whose tokens ask
    attention: Attention
    asking: Tensor  # (b, n, d), what queries are made of
    answering: Tensor  # (b, m, d), what keys are made of
    rope: Rope
    context_rope: Rope

    def __call__(self) -> Tokens:
        """Attend."""
        heard: Tensor = self.attention(
            self.asking, self.answering, rope=self.rope, context_rope=self.context_rope
        )
        return heard

    def item(self, index: int) -> "CrossAttentionCall":
        """Take one item of the batch, to be looked at."""
        one = slice(index, index + 1)
        ropes = (Rope(*(table if len(table) == 1 else table[one] for table in rope)) for rope in self[4:])
        return CrossAttentionCall(self.reader, self.attention, self.asking[one], self.answering[one], *ropes)

    def shares(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "heads n m"]:
        """Recompute how the first item's tokens from `start` to `stop` share their attention, in float32."""
        query = self.attention.project_query(self.asking, self.rope)[0][:, start:stop]
        key = self.attention.project_context(self.answering, self.context_rope).k
        return self.attention.shares(query, key)[0]


Watch = Callable[[CrossAttentionCall], None]


class Pending(NamedTuple):
    """Tokens on their way through the blocks, and which of their rows stand for which passes."""

    tokens: StreamTokens
    rows: Rows

    def parted(self, key: Callable[[int], Hashable]) -> "Pending":
        """Let passes part that are treated differently from here on."""
        rows, origins = self.rows.part(key)
        if len(rows.rows) == len(self.rows.rows):
            return self
        return Pending({stream: take(x, origins) for stream, x in self.tokens.items()}, rows)


class StreamLayers(NamedTuple):
    """One stream's own layers of a block, by role instead of by official name."""

    stream: Stream
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
    kernels: Kernels = TORCH  # what norms, modulates and adds; see `use_kernels`

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
                stream, self.attn1, self.attn2, self.ff, self.scale_shift_table, self.prompt_scale_shift_table
            )
        return StreamLayers(
            stream,
            self.audio_attn1,
            self.audio_attn2,
            self.audio_ff,
            self.audio_scale_shift_table,
            self.audio_prompt_scale_shift_table,
        )

    def cross_table(self, stream: Stream) -> Tensor:
        """Pick one stream's rows for the attention between the streams."""
        return (
            self.scale_shift_table_a2v_ca_video if stream == "video" else self.scale_shift_table_a2v_ca_audio
        )

    def forward(
        self,
        pending: Pending,
        given: Mapping[Stream, StreamConditioning],
        skips: Sequence[BlockSkips],
        watch: tuple[int, Watch] | None = None,
    ) -> Pending:
        """Pass the streams that are present; a disabled one stands still and is only read by the other.

        Tokens are changed in place where no gradient is wanted.

        Args:
            pending: Emptied, so that nobody holds the rows of passes that part in here.
            skips: What each pass leaves out.
            watch: A pass, and who is shown its calls of the attention between the streams; its first item's.
        """
        given_over, pending = pending, Pending(dict(pending.tokens), pending.rows)
        given_over.tokens.clear()
        enabled = [stream for stream in pending.tokens if given[stream].enabled]
        layers = {stream: self.layers(stream) for stream in enabled}
        modulation = {stream: given[stream].modulation.plus(layers[stream].table) for stream in enabled}
        pending = pending.parted(lambda p: (skips[p].video_self_attention, skips[p].audio_self_attention))
        for stream in enabled:
            self.attend_to_self(pending, layers[stream], given[stream], modulation[stream], skips)
        pending = pending.parted(lambda p: tuple(given[stream].text_of[p] for stream in enabled))
        for stream in enabled:
            self.attend_to_text(pending, layers[stream], given[stream], modulation[stream])
        if len(pending.tokens) == 2:
            pending = pending.parted(lambda p: (skips[p].a2v, skips[p].v2a))
            self.attend_to_each_other(pending, given, skips, watch)
        for stream in enabled:
            self.feed_forward(pending, layers[stream], modulation[stream])
        return pending

    def attend_to_self(
        self,
        pending: Pending,
        layers: StreamLayers,
        given: StreamConditioning,
        modulation: Modulation,
        skips: Sequence[BlockSkips],
    ) -> None:
        """Let the tokens of one stream read each other."""
        stream = layers.stream

        def is_skipped(number: int) -> bool:
            skip = skips[number]
            return skip.video_self_attention if stream == "video" else skip.audio_self_attention

        for part in pending.rows.parts(is_skipped):
            x = pending.tokens[stream]
            shift, scale, gate = modulation.spread(SELF_ATTENTION, part.items)
            heard = layers.self_attention(
                self.kernels.norm_modulate(take(x, part.rows), scale, shift, self.eps),
                rope=spread_rope(given.rope, part.items),
                bias=spread_bias(given.attention_bias, part.items),
                value_passthrough=bool(part.key),
            )
            pending.tokens[stream] = add(x, part.rows, heard, gate, self.kernels)
            del heard  # the next part needs the room

    def attend_to_text(
        self, pending: Pending, layers: StreamLayers, given: StreamConditioning, modulation: Modulation
    ) -> None:
        """Let the tokens read the prompt; from 2.3 on both are modulated and the result is gated."""
        stream = layers.stream
        read: dict[int, _ReadText] = {}
        for part in pending.rows.parts(lambda p: None if given.texts_are_alike else given.text_of[p]):
            x = pending.tokens[stream]
            numbers = [given.text_of[pending.rows.rows[row].passes[0]] for row in part.rows]
            for number in numbers:
                if number not in read:
                    read[number] = _ReadText.of(given.texts[number], layers)
            own, gate = take(x, part.rows), None
            if layers.context_table is None:
                own = rms_norm(own, self.eps)
            else:
                shift, scale, gate = modulation.spread(TEXT_ATTENTION, part.items)
                own = self.kernels.norm_modulate(own, scale, shift, self.eps)
            heard = _attend_to_texts(layers.text_attention, own, [read[n] for n in numbers], part.items)
            pending.tokens[stream] = add(x, part.rows, heard, gate, self.kernels)
            del own, heard

    def attend_to_each_other(
        self,
        pending: Pending,
        given: Mapping[Stream, StreamConditioning],
        skips: Sequence[BlockSkips],
        watch: tuple[int, Watch] | None = None,
    ) -> None:
        """Let each stream read the other as it is now; RoPE on seconds tells what is simultaneous."""
        sides = {stream: self._side(stream, given[stream]) for stream in STREAMS}
        watched = None if watch is None else pending.rows.of_pass(watch[0])[0]
        for part in pending.rows.parts(lambda p: (skips[p].a2v, skips[p].v2a)):
            skip = skips[pending.rows.rows[part.rows[0]].passes[0]]
            readers: list[Stream] = [
                stream
                for stream, skipped in zip(STREAMS, (skip.a2v, skip.v2a), strict=True)
                if given[stream].enabled and not skipped
            ]
            if not readers:
                continue
            read = {
                stream: self._modulated(take(pending.tokens[stream], part.rows), sides[stream], readers, part)
                for stream in STREAMS
            }
            calls = [self._call(reader, read, given, part) for reader in readers]
            if watch is not None and watched in part.rows:
                for call in calls:
                    watch[1](call.item(part.rows.index(watched)))
            heard = [call() for call in calls]
            for stream, delta in zip(readers, heard, strict=True):
                (gate,) = sides[stream].gate.spread(items=part.items)
                pending.tokens[stream] = add(pending.tokens[stream], part.rows, delta, gate, self.kernels)
            del read, calls, heard, delta

    def _call(
        self,
        reader: Stream,
        read: Mapping[Stream, StreamTokens],
        given: Mapping[Stream, StreamConditioning],
        part: Part,
    ) -> CrossAttentionCall:
        other: Stream = "audio" if reader == "video" else "video"
        return CrossAttentionCall(
            reader,
            self.audio_to_video_attn if reader == "video" else self.video_to_audio_attn,
            read[reader][reader],
            read[other][reader],
            spread_rope(given[reader].cross_rope, part.items),
            spread_rope(given[other].cross_rope, part.items),
        )

    def _modulated(self, x: Tensor, side: "_Side", readers: Sequence[Stream], part: Part) -> StreamTokens:
        """Norm one stream's tokens and modulate them for each reader; there are one or two."""
        rows = [side.modulation.spread(A2V if reader == "video" else V2A, part.items) for reader in readers]
        if len(rows) == 1:
            scale, shift = rows[0]
            return {readers[0]: self.kernels.norm_modulate(x, scale, shift, self.eps)}
        first, second = (ScaleShift(*one) for one in rows)
        both = self.kernels.norm_modulate_twice(x, first, second, self.eps)
        return dict(zip(readers, both, strict=True))

    def feed_forward(self, pending: Pending, layers: StreamLayers, modulation: Modulation) -> None:
        """Transform every token by itself."""
        stream = layers.stream
        for part in pending.rows.all():
            x = pending.tokens[stream]
            shift, scale, gate = modulation.spread(FEED_FORWARD, part.items)
            wide = layers.feed_forward.widen(
                self.kernels.norm_modulate(take(x, part.rows), scale, shift, self.eps)
            )
            pending.tokens[stream] = add(x, part.rows, layers.feed_forward.narrow(wide), gate, self.kernels)
            del wide  # the next part needs the room

    def join_projections(self) -> None:
        """Lay the projections of each attention that read the same tokens side by side."""
        for layer in self.children():
            if isinstance(layer, Attention):
                layer.join_projections()

    def _side(self, stream: Stream, given: StreamConditioning) -> "_Side":
        """Add the block's table to what modulates one side of the attention between the streams."""
        assert given.cross_modulation is not None
        assert given.cross_gate is not None
        table = self.cross_table(stream)
        return _Side(given.cross_modulation.plus(table, ACROSS), given.cross_gate.plus(table, GATE))


class _Side(NamedTuple):
    """One stream's part in the attention between the streams."""

    modulation: Modulation
    gate: Modulation


class _ReadText(NamedTuple):
    """A text as one layer reads it: its keys and values, and those of the text to steer away from."""

    text: TextConditioning
    toward: KeyValue
    away: KeyValue | None

    @classmethod
    def of(cls, text: TextConditioning, layers: StreamLayers) -> "_ReadText":
        attention, table = layers.text_attention, layers.context_table
        toward = text.keys_values(attention, table)
        away = None if text.negative_text is None else text.keys_values(attention, table, away=True)
        return cls(text, toward, away)


def _attend_to_texts(
    attention: Attention, x: Tensor, read: Sequence[_ReadText], items: Sequence[int]
) -> Tensor:
    """Let every row read its text, and if there is one to steer away from, steer away from what it says.

    Args:
        read: Of each row; they differ only where there is nothing but keys and values to them.
    """
    (query, logits), text = attention.project_query(x), read[0].text
    bias = spread_bias(text.bias, items)
    heard = attention.mix(query, _keys_values([one.toward for one in read], items), bias=bias)
    if text.negative_text is not None:
        away = [one.away for one in read if one.away is not None]
        heard = text.negative_text.steer(heard, attention.mix(query, _keys_values(away, items)))
    return attention.combine(heard, logits)


def _keys_values(of_rows: Sequence[KeyValue], items: Sequence[int]) -> KeyValue:
    """Put the keys and values of rows together."""
    if all(one is of_rows[0] for one in of_rows):
        return spread_keys_values(of_rows[0], items)
    rows = [spread_keys_values(one, (item,)) for one, item in zip(of_rows, items, strict=True)]
    return KeyValue(torch.cat([row.k for row in rows]), torch.cat([row.v for row in rows]))


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
