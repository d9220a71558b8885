"""What attention does around its products as Triton kernels: norm and rotate queries and keys, gate heads.

Like `fused`, of which they are the other half; `plain` has the same steps.
"""

from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.kernels import launching
from soundstage.nn.kernels.launching import dense_rows
from soundstage.nn.kernels.plain import NormRope
from soundstage.nn.rope import Rope


@triton.jit
@no_type_check
def _norm_rope_row(
    row,
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    num_tokens,
    x_item,
    x_token,
    shared,
    table_item,
    table_row,
    table_head,
    out_item,
    out_token,
    num_pairs,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = row // num_tokens
    token = row % num_tokens
    source = x_ptr + item * x_item + token * x_token
    target = out_ptr + item * out_item + token * out_token
    # Pair p of a token is element p % HALF of both halves of head p // HALF; neighbours are heads of two.
    pair = tl.arange(0, BLOCK)
    inside = pair < num_pairs
    head = pair // HALF
    element = pair % HALF
    first_at = head * (2 * HALF) + element
    second_at = first_at + HALF
    first = tl.load(source + first_at, mask=inside, other=0.0)
    second = tl.load(source + second_at, mask=inside, other=0.0)
    dtype = first.dtype
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    factor = tl.rsqrt(tl.sum(first * first + second * second, axis=0) / (2 * num_pairs) + eps)
    first_weight = tl.load(weight_ptr + first_at, mask=inside, other=0.0).to(dtype).to(tl.float32)
    second_weight = tl.load(weight_ptr + second_at, mask=inside, other=0.0).to(dtype).to(tl.float32)
    first = (first * factor * first_weight).to(dtype).to(tl.float32)
    second = (second * factor * second_weight).to(dtype).to(tl.float32)
    table_at = item * table_item + token // shared * table_row + head * table_head + element
    cos = tl.load(cos_ptr + table_at, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + table_at, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + first_at, (first * cos - second * sin).to(dtype), mask=inside)
    tl.store(target + second_at, (second * cos + first * sin).to(dtype), mask=inside)


@triton.jit
@no_type_check
def _norm_rope(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    num_tokens,
    x_item,
    x_token,
    shared,
    table_item,
    table_row,
    table_head,
    out_item,
    out_token,
    num_pairs,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    _norm_rope_row(
        tl.program_id(0).to(tl.int64),
        x_ptr,
        weight_ptr,
        cos_ptr,
        sin_ptr,
        out_ptr,
        num_tokens,
        x_item,
        x_token,
        shared,
        table_item,
        table_row,
        table_head,
        out_item,
        out_token,
        num_pairs,
        eps,
        HALF,
        BLOCK,
    )


@triton.jit
@no_type_check
def _norm_rope_both(
    q_ptr,
    q_weight_ptr,
    q_cos_ptr,
    q_sin_ptr,
    q_out_ptr,
    q_tokens,
    q_item,
    q_token,
    q_shared,
    q_table_item,
    q_table_row,
    q_table_head,
    q_out_item,
    q_out_token,
    k_ptr,
    k_weight_ptr,
    k_cos_ptr,
    k_sin_ptr,
    k_out_ptr,
    k_tokens,
    k_item,
    k_token,
    k_shared,
    k_table_item,
    k_table_row,
    k_table_head,
    k_out_item,
    k_out_token,
    num_items,
    num_pairs,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # A query and the key of the same number, one after the other: where both read one row of a table, the
    # second finds it in the cache.
    row = tl.program_id(0).to(tl.int64)
    if row < num_items * q_tokens:
        _norm_rope_row(
            row,
            q_ptr,
            q_weight_ptr,
            q_cos_ptr,
            q_sin_ptr,
            q_out_ptr,
            q_tokens,
            q_item,
            q_token,
            q_shared,
            q_table_item,
            q_table_row,
            q_table_head,
            q_out_item,
            q_out_token,
            num_pairs,
            eps,
            HALF,
            BLOCK,
        )
    if row < num_items * k_tokens:
        _norm_rope_row(
            row,
            k_ptr,
            k_weight_ptr,
            k_cos_ptr,
            k_sin_ptr,
            k_out_ptr,
            k_tokens,
            k_item,
            k_token,
            k_shared,
            k_table_item,
            k_table_row,
            k_table_head,
            k_out_item,
            k_out_token,
            num_pairs,
            eps,
            HALF,
            BLOCK,
        )


@triton.jit
@no_type_check
def _gate_heads(
    x_ptr,
    logits_ptr,
    out_ptr,
    dim,
    num_tokens,
    logits_item,
    logits_token,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    item = row // num_tokens
    token = row % num_tokens
    column = tl.arange(0, BLOCK)
    inside = column < dim
    x = tl.load(x_ptr + row * dim + column, mask=inside, other=0.0)
    logits_at = logits_ptr + item * logits_item + token * logits_token
    logit = tl.load(logits_at + column // HEAD, mask=inside, other=0.0).to(tl.float32)
    share = (1.0 / (1.0 + tl.exp(-logit))).to(x.dtype).to(tl.float32)
    gate = (2.0 * share).to(x.dtype).to(tl.float32)
    tl.store(out_ptr + row * dim + column, (x.to(tl.float32) * gate).to(x.dtype), mask=inside)


def norm_rope(
    x: Float[Tensor, "b n d"], weight: Float[Tensor, " d"], rope: Rope, eps: float
) -> Float[Tensor, "b n d"]:
    """Norm queries or keys over all heads together, then rotate them; see `plain.norm_rope`.

    Tokens may be spaced out in memory, as slices of a joint projection are.
    """
    items, num_tokens, dim = x.shape
    at = _to_rotate(NormRope(x, weight, rope), in_place=False)
    launching.launch(_norm_rope, items * num_tokens, dim // 2, at.x, *at.others, dim // 2, eps, HALF=at.half)
    return at.out


def norm_rope_both(
    queries: NormRope, keys: NormRope, eps: float, *, in_place: bool = False
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b s d"]]:
    """Norm and rotate queries and keys in one launch; see `plain.norm_rope_both`."""
    items, most, pairs = len(queries.x), max(queries.x.shape[1], keys.x.shape[1]), queries.x.shape[2] // 2
    q, k = (_to_rotate(given, in_place=in_place) for given in (queries, keys))
    assert q.half == k.half
    assert len(keys.x) == items
    places = *q.others, k.x, *k.others
    launching.launch(_norm_rope_both, items * most, pairs, q.x, *places, items, pairs, eps, HALF=q.half)
    return q.out, k.out


class _Places(NamedTuple):
    """Where a kernel finds tokens that it is to rotate."""

    half: int  # how far apart the numbers of a pair are
    x: Tensor
    others: Sequence[Tensor | int]
    out: Tensor


def _to_rotate(given: NormRope, *, in_place: bool) -> _Places:
    x, (cos, sin) = dense_rows(given.x), (dense_rows(table) for table in given.rope)
    table_item = 0 if cos.shape[0] == 1 else cos.stride(0)
    if cos.ndim == 4:  # "split": (b, heads, n, half)
        half, table_head = cos.shape[3], cos.stride(1)
    else:  # "interleaved": (b, n, d), every number twice
        half, table_head = 1, 2
    assert cos.stride() == sin.stride()
    num_tokens, num_rows = x.shape[1], cos.shape[-2]
    assert num_tokens % num_rows == 0
    out = x if in_place else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    table = [num_tokens // num_rows, table_item, cos.stride(-2), table_head]  # a row for so many tokens first
    steps = [x.stride(0), x.stride(1), *table, out.stride(0), out.stride(1)]
    return _Places(half, x, [given.weight, cos, sin, out, num_tokens, *steps], out)


def gate_heads(heard: Float[Tensor, "b n d"], logits: Float[Tensor, "b n heads"]) -> Float[Tensor, "b n d"]:
    """Scale the heads of every token, in place; see `plain.gate_heads`."""
    heard, logits = heard.contiguous(), dense_rows(logits)
    items, num_tokens, dim = heard.shape
    launching.launch(
        _gate_heads,
        items * num_tokens,
        dim,
        heard,
        logits,
        heard,
        dim,
        num_tokens,
        logits.stride(0),
        logits.stride(1),
        HEAD=dim // logits.shape[-1],
    )
    return heard
