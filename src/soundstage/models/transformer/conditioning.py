"""What steers a stream inside the blocks: noise levels, texts, positions and the other stream's level."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.errors import RequestError
from soundstage.core.types import Context, ContextMask
from soundstage.models.transformer.attention_weights import cut_up, spread_parts
from soundstage.models.transformer.inputs import Text
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.modulation import Modulation, modulate
from soundstage.models.transformer.negative_text import NegativeText
from soundstage.models.transformer.picking import of_items
from soundstage.nn.attention import Attention, KeyValue
from soundstage.nn.attention_parts import AttentionParts
from soundstage.nn.rope import Rope

Bias = Float[Tensor, "#b 1 #n s"] | AttentionParts


@dataclass(frozen=True, kw_only=True)
class TextConditioning:
    """One text, as wide as the stream."""

    source: Text
    context: Context
    bias: Bias | None
    negative_text: NegativeText | None  # its context as wide as `context`
    modulation: Modulation | None  # 2.3 and later
    kept: Kept | None  # None where the noise level changes keys and values

    def keys_values(self, attention: Attention, table: Tensor | None, *, away: bool = False) -> KeyValue:
        """Make what a layer reads of the text, or of the one to steer away from."""
        text, context = self.source.context, self.context
        if away:
            assert self.source.negative is not None
            assert self.negative_text is not None
            text, context = self.source.negative.context, self.negative_text.context

        def make() -> KeyValue:
            return attention.project_context(self._modulated(context, table))

        if self.kept is None:
            return make()

        def make_to_keep() -> KeyValue:
            k, v = make()
            return KeyValue(k, v.contiguous())  # in a joint product values lie beside keys before their norm

        sources = (text, attention.to_k, attention.to_v, attention.k_norm, table)
        return self.kept.get("keys_values", sources, make_to_keep)

    def _modulated(self, context: Tensor, table: Tensor | None) -> Tensor:
        if table is None or self.modulation is None:
            return context
        shift, scale = self.modulation.plus(table).spread()
        return modulate(context.expand(max(len(context), len(scale)), -1, -1), scale=scale, shift=shift)


@dataclass(frozen=True, kw_only=True)
class StreamConditioning:
    """What a stream is conditioned on: all that blocks know besides its tokens, the same for every block."""

    modulation: Modulation
    output_modulation: Modulation  # not for the blocks but for the output layer
    rope: Rope
    texts: Sequence[TextConditioning]
    text_of: Sequence[int]  # which of them each pass reads
    attention_bias: Bias | None
    enabled: bool
    cross_rope: Rope  # on seconds alone
    cross_modulation: Modulation | None  # from the stream's own noise levels; None without the other stream
    cross_gate: Modulation | None  # from the other stream's level

    @property
    def texts_are_alike(self) -> bool:
        """Whether rows that read different texts can still attend together."""
        if len(self.texts) == 1:
            return True
        plain = all(text.bias is None and text.negative_text is None for text in self.texts)
        return plain and len({text.context.shape[1] for text in self.texts}) == 1


def condition_text(
    text: Text,
    project: nn.Module | None,
    modulation: Modulation | None,
    dtype: torch.dtype,
    kept: Kept | None,
    *,
    constant: bool,
) -> TextConditioning:
    """Bring a text to the stream's width and say which words are read.

    Args:
        project: Brings contexts to the width, for checkpoints that ask for it.
        constant: Whether keys and values are the same at every noise level.
    """

    def widened(context: Tensor) -> Tensor:
        if project is None:
            return context.to(dtype)
        if kept is None:
            return _projected(project, context, dtype)
        return kept.get("context", (context, project), lambda: _projected(project, context, dtype))

    negative = text.negative
    return TextConditioning(
        source=text,
        context=widened(text.context),
        bias=_context_bias(text, dtype),
        negative_text=None if negative is None else replace(negative, context=widened(negative.context)),
        modulation=modulation,
        kept=kept if constant else None,
    )


def spread_rope(rope: Rope, items: Sequence[int]) -> Rope:
    """Spread tables over rows of these items."""
    return Rope(of_items(rope.cos, items), of_items(rope.sin, items))


def spread_bias(bias: Bias | None, items: Sequence[int]) -> Bias | None:
    """Spread a bias over rows of these items."""
    if isinstance(bias, Tensor):
        return of_items(bias, items)
    return None if bias is None else spread_parts(bias, items)


def spread_keys_values(kept: KeyValue, items: Sequence[int]) -> KeyValue:
    """Spread keys and values over rows of these items."""
    if kept.k.shape[0] == 1 and len(items) > 1:
        return KeyValue(*(part.expand(len(items), -1, -1) for part in kept))
    return KeyValue(of_items(kept.k, items), of_items(kept.v, items))


def _projected(project: nn.Module, context: Tensor, dtype: torch.dtype) -> Tensor:
    wide: Tensor = project(context.to(dtype))
    return wide


def _context_bias(text: Text, dtype: torch.dtype) -> Bias | None:
    """Say which words tokens may read: by a mask for all of them, or by weights for each."""
    if text.weights is None:
        return _mask_to_bias(text.mask, dtype)
    if text.mask is not None:
        raise RequestError("context_mask and context_weights both say which words are read; give one")
    return cut_up(text.weights, dtype)


def _mask_to_bias(mask: ContextMask | None, dtype: torch.dtype) -> Float[Tensor, "b 1 1 s"] | None:
    """Turn a text mask into what attention adds to its scores."""
    if mask is None:
        return None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None]
