"""Multi-head attention with normed queries and keys, optional rotation and optional gates per head."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.nn.attention_backends import SDPA, AttentionBackend
from soundstage.nn.attention_parts import AttentionParts
from soundstage.nn.kernels.choice import TORCH, Kernels
from soundstage.nn.kernels.plain import NormRope
from soundstage.nn.linear import is_plain, is_watched, join, project, project_together
from soundstage.nn.norms import RMSNorm
from soundstage.nn.rope import Rope

READ_BYTES = 16  # that kernels of attention read at once


class KeyValue(NamedTuple):
    """Keys (normed, rotated) and values, each (b, s, heads * head_dim); they can be kept between calls."""

    k: Tensor
    v: Tensor


class Attention(nn.Module):
    """Attend from `x` to `context`, or to `x` itself.

    Queries and keys are RMS-normed over all heads together before they are rotated. With `gated`, each head's
    output is scaled by a factor in (0, 2) read from the query token.

    Source: LTX-2, arXiv 2601.03233; gates as in Qiu et al. 2025, "Gated Attention for Large Language Models".
    """

    kernels: Kernels = TORCH  # what norms and rotates; see `use_kernels`
    attention_backend: AttentionBackend = SDPA  # what mixes the values; see `use_attention`

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        *,
        heads: int,
        head_dim: int,
        out_dim: int | None = None,
        gated: bool = False,
        bias: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        inner_dim = heads * head_dim
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=bias)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=bias)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=bias)
        self.q_norm = RMSNorm(inner_dim, eps)
        self.k_norm = RMSNorm(inner_dim, eps)
        self.to_gate_logits = nn.Linear(query_dim, heads) if gated else None
        self.to_out = nn.Sequential(
            nn.Linear(inner_dim, query_dim if out_dim is None else out_dim, bias=bias)
        )

    def forward(
        self,
        x: Float[Tensor, "b n query_dim"],
        context: Float[Tensor, "b s context_dim"] | None = None,
        *,
        rope: Rope | None = None,
        context_rope: Rope | None = None,
        bias: Float[Tensor, "#b #heads #n #s"] | AttentionParts | None = None,
        value_passthrough: bool = False,
    ) -> Float[Tensor, "b n out_dim"]:
        """Attend.

        Args:
            context: Where keys and values come from; `x` when absent.
            rope: Rotation of the queries, and of the keys too when there is no `context`.
            context_rope: Rotation of the keys of `context`.
            bias: Added to the scores, in the dtype of `x`; or who attends to whom.
            value_passthrough: Every token keeps its own value instead of attending (self-attention only).
                Gates and output projection still apply.
        """
        if value_passthrough:
            (own,), logits = self._with_logits((self.to_v,), x)
            return self.combine(own.clone() if is_watched((self.to_v,)) else own, logits)
        # Queries, keys and values have no names here, and logits, which may lie in one memory with them, none
        # either: they are gone before heads are projected out.
        return self.combine(self._attend(x, context, rope, context_rope, bias), None)

    def _attend(
        self,
        x: Tensor,
        context: Tensor | None,
        rope: Rope | None,
        context_rope: Rope | None,
        bias: Tensor | AttentionParts | None,
    ) -> Tensor:
        query, keys_values, logits = self.project_all(x, rope, context, context_rope)
        return self._gated(self.mix(query, keys_values, bias=bias), logits)

    def project_all(
        self,
        x: Float[Tensor, "b n query_dim"],
        rope: Rope | None = None,
        context: Float[Tensor, "b s context_dim"] | None = None,
        context_rope: Rope | None = None,
    ) -> tuple[Float[Tensor, "b n inner_dim"], KeyValue, Float[Tensor, "b n heads"] | None]:
        """Make queries, keys, values and the logits of gates, if there are any; see `forward`."""
        if context is None:
            (q, k, v), logits = self._with_logits((self.to_q, self.to_k, self.to_v), x)
            context_rope = rope
        else:
            (q,), logits = self._with_logits((self.to_q,), x)
            k, v = project_together((self.to_k, self.to_v), context)
        if rope is None or context_rope is None:
            q, k = (
                self._norm_and_rotate(q, self.q_norm, rope),
                self._norm_and_rotate(k, self.k_norm, context_rope),
            )
        else:
            q, k = self.kernels.norm_rope_both(
                NormRope(q, self.q_norm.weight, rope),
                NormRope(k, self.k_norm.weight, context_rope),
                self.q_norm.eps,
                in_place=not is_watched((self.to_q, self.to_k)),
            )
        return q, KeyValue(k, v), logits

    def project_context(
        self, context: Float[Tensor, "b s context_dim"], rope: Rope | None = None
    ) -> KeyValue:
        """Make keys and values; they can be kept while `context` stays the same."""
        k, v = project_together((self.to_k, self.to_v), context)
        return KeyValue(self._norm_and_rotate(k, self.k_norm, rope), v)

    def project_query(
        self, x: Float[Tensor, "b n query_dim"], rope: Rope | None = None
    ) -> tuple[Float[Tensor, "b n inner_dim"], Float[Tensor, "b n heads"] | None]:
        """Make queries, and the logits of gates; several contexts can be asked with the same ones."""
        logits: Tensor | None
        if (
            rope is None and self.to_gate_logits is not None
        ):  # a norm without rotation copies rows that lie apart
            q, logits = project(self.to_q, x), project(self.to_gate_logits, x)
        else:
            (q,), logits = self._with_logits((self.to_q,), x)
        return self._norm_and_rotate(q, self.q_norm, rope), logits

    def mix(
        self,
        query: Float[Tensor, "b n inner_dim"],
        keys_values: KeyValue,
        *,
        bias: Float[Tensor, "#b #heads #n #s"] | AttentionParts | None = None,
    ) -> Float[Tensor, "b n inner_dim"]:
        """Mix the values by softmax(q k / sqrt(head_dim) + bias), heads side by side."""
        q, k, v = (
            part.view(part.shape[0], part.shape[1], self.heads, -1).transpose(1, 2)
            for part in (query, *keys_values)
        )
        if bias is None or isinstance(bias, Tensor):
            return self.attention_backend.attend(q, k, v, bias).transpose(1, 2).flatten(-2)
        strips = bias.attend(self.attention_backend, q, k, v)
        return torch.cat([strip.transpose(1, 2).flatten(-2) for strip in strips], dim=1)

    def shares(
        self,
        query: Float[Tensor, "b n inner_dim"],
        key: Float[Tensor, "b s inner_dim"],
    ) -> Float[Tensor, "b heads n s"]:
        """Return softmax(q k / sqrt(head_dim)), which `mix` never holds, in float32: to be looked at."""
        q, k = (rearrange(part, "b n (heads d) -> b heads n d", heads=self.heads) for part in (query, key))
        scores = q.float() @ k.float().transpose(-1, -2)
        shares: Tensor = (scores * q.shape[-1] ** -0.5).softmax(-1)
        return shares

    def combine(
        self, heard: Float[Tensor, "b n inner_dim"], logits: Float[Tensor, "b n heads"] | None
    ) -> Float[Tensor, "b n out_dim"]:
        """Gate the heads by what the query token asks for, over themselves, and project them out."""
        return project(self.to_out[0], self._gated(heard, logits))

    def _gated(self, heard: Tensor, logits: Tensor | None) -> Tensor:
        return heard if logits is None else self.kernels.gate_heads(heard, logits)

    def _with_logits(
        self, layers: Sequence[nn.Module], x: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Apply layers of the query tokens together with the one that asks for gates, if there is one.

        On a CPU apart: it gains nothing there by one product, and would round as it does not for weights that
        lie elsewhere.
        """
        if self.to_gate_logits is None:
            return project_together(layers, x), None
        if _is_on_cpu(x) and is_plain(self.to_gate_logits):
            return project_together(layers, x), project(self.to_gate_logits, x)
        logits, *outputs = project_together((self.to_gate_logits, *layers), x)
        return tuple(outputs), logits

    def _norm_and_rotate(self, x: Tensor, norm: RMSNorm, rope: Rope | None) -> Tensor:
        """Norm queries or keys over all heads together, then rotate them."""
        return norm(x) if rope is None else self.kernels.norm_rope(x, norm.weight, rope, norm.eps)

    def join_projections(self) -> None:
        """Lay the weights of layers that read the same tokens side by side: what asks for gates, then queries
        before keys and values, so that every pair and all of them can be one product.

        Gates stay apart where queries behind them would not begin at a multiple of 16 bytes in every row: so
        much at once do the kernels of attention read on a GPU, from such places alone.
        """
        logit_bytes = self.heads * self.to_q.weight.element_size()
        gates = None if logit_bytes % READ_BYTES else self.to_gate_logits
        asking = [layer for layer in (gates, self.to_q) if layer is not None]
        if not join((*asking, self.to_k, self.to_v)) and not join((self.to_q, self.to_k, self.to_v)):
            join(asking)
            join((self.to_k, self.to_v))


def _is_on_cpu(x: Tensor) -> bool:
    return x.is_cpu
