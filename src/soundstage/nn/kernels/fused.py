"""The memory-bound steps of a transformer block as Triton kernels: each tensor is read once and written once.

One program per token, statistics in float32. Intermediate results are rounded to the dtype of the tokens
where `plain` rounds them, so both agree up to the order of a sum: to one unit in the last place. This module
imports Triton; import it through `choice`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, no_type_check, runtime_checkable

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.kernels.lookup import PerToken, TokenRows, shared_lookup, spread
from soundstage.nn.kernels.plain import FP8_MAX, LEAST_SCALE, NormRope, Quantised, ScaleShift
from soundstage.nn.rope import Rope

WIDE = 4096  # columns from which a program is given twice the warps


@runtime_checkable
class _Kernel(Protocol):
    """What `triton.jit` makes: by a number of programs it gives what starts them."""

    def __getitem__(self, grid: tuple[int]) -> Callable[..., object]: ...


@triton.jit
@no_type_check
def _norm_modulate(
    x_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    lookup_ptr,
    lookup_item,
    num_tokens,
    dim,
    scale_item,
    scale_token,
    shift_item,
    shift_token,
    eps,
    LOOKUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    item = row // num_tokens
    token = row % num_tokens
    if LOOKUP:  # rows are those of a table, in place of the items'
        item = tl.load(lookup_ptr + item * lookup_item + token)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    x = tl.load(x_ptr + row * dim + column, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, axis=0) / dim + eps)
    normed = (wide * factor).to(x.dtype).to(tl.float32)
    scale = tl.load(scale_ptr + item * scale_item + token * scale_token + column, mask=inside, other=0.0)
    shift = tl.load(shift_ptr + item * shift_item + token * shift_token + column, mask=inside, other=0.0)
    around_one = (1.0 + scale.to(tl.float32)).to(x.dtype).to(tl.float32)
    out = shift.to(tl.float32) + normed * around_one
    tl.store(out_ptr + row * dim + column, out.to(x.dtype), mask=inside)


@triton.jit
@no_type_check
def _norm_modulate_twice(
    x_ptr,
    scale_a_ptr,
    shift_a_ptr,
    scale_b_ptr,
    shift_b_ptr,
    out_a_ptr,
    out_b_ptr,
    lookup_ptr,
    lookup_item,
    num_tokens,
    dim,
    scale_a_item,
    scale_a_token,
    shift_a_item,
    shift_a_token,
    scale_b_item,
    scale_b_token,
    shift_b_item,
    shift_b_token,
    eps,
    LOOKUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    item = row // num_tokens
    token = row % num_tokens
    if LOOKUP:  # rows are those of a table, in place of the items'
        item = tl.load(lookup_ptr + item * lookup_item + token)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    x = tl.load(x_ptr + row * dim + column, mask=inside, other=0.0)
    dtype = x.dtype
    wide = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, axis=0) / dim + eps)
    normed = (wide * factor).to(dtype).to(tl.float32)
    scale_at = scale_a_ptr + item * scale_a_item + token * scale_a_token
    shift_at = shift_a_ptr + item * shift_a_item + token * shift_a_token
    scale = tl.load(scale_at + column, mask=inside, other=0.0)
    shift = tl.load(shift_at + column, mask=inside, other=0.0)
    out = shift.to(tl.float32) + normed * (1.0 + scale.to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(out_a_ptr + row * dim + column, out.to(dtype), mask=inside)
    scale_at = scale_b_ptr + item * scale_b_item + token * scale_b_token
    shift_at = shift_b_ptr + item * shift_b_item + token * shift_b_token
    scale = tl.load(scale_at + column, mask=inside, other=0.0)
    shift = tl.load(shift_at + column, mask=inside, other=0.0)
    out = shift.to(tl.float32) + normed * (1.0 + scale.to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(out_b_ptr + row * dim + column, out.to(dtype), mask=inside)


@triton.jit
@no_type_check
def _norm_rope_token(
    source,
    weight_ptr,
    cos_at,
    sin_at,
    table_head,
    target,
    num_pairs,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
    table_at = head * table_head + element
    cos = tl.load(cos_at + table_at, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_at + table_at, mask=inside, other=0.0).to(tl.float32)
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
    table_item,
    table_token,
    table_head,
    out_item,
    out_token,
    num_pairs,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    item = row // num_tokens
    token = row % num_tokens
    table_at = item * table_item + token * table_token
    _norm_rope_token(
        x_ptr + item * x_item + token * x_token,
        weight_ptr,
        cos_ptr + table_at,
        sin_ptr + table_at,
        table_head,
        out_ptr + item * out_item + token * out_token,
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
    q_table_item,
    q_table_token,
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
    k_table_item,
    k_table_token,
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
        item = row // q_tokens
        token = row % q_tokens
        table_at = item * q_table_item + token * q_table_token
        _norm_rope_token(
            q_ptr + item * q_item + token * q_token,
            q_weight_ptr,
            q_cos_ptr + table_at,
            q_sin_ptr + table_at,
            q_table_head,
            q_out_ptr + item * q_out_item + token * q_out_token,
            num_pairs,
            eps,
            HALF,
            BLOCK,
        )
    if row < num_items * k_tokens:
        item = row // k_tokens
        token = row % k_tokens
        table_at = item * k_table_item + token * k_table_token
        _norm_rope_token(
            k_ptr + item * k_item + token * k_token,
            k_weight_ptr,
            k_cos_ptr + table_at,
            k_sin_ptr + table_at,
            k_table_head,
            k_out_ptr + item * k_out_item + token * k_out_token,
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


@triton.jit
@no_type_check
def _gate_add(
    x_ptr,
    gate_ptr,
    update_ptr,
    out_ptr,
    lookup_ptr,
    lookup_item,
    num_tokens,
    dim,
    gate_item,
    gate_token,
    LOOKUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    item = row // num_tokens
    token = row % num_tokens
    if LOOKUP:  # rows are those of a table, in place of the items'
        item = tl.load(lookup_ptr + item * lookup_item + token)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    x = tl.load(x_ptr + row * dim + column, mask=inside, other=0.0)
    gate = tl.load(gate_ptr + item * gate_item + token * gate_token + column, mask=inside, other=0.0)
    update = tl.load(update_ptr + row * dim + column, mask=inside, other=0.0)
    out = x.to(tl.float32) + gate.to(tl.float32) * update.to(tl.float32)
    tl.store(out_ptr + row * dim + column, out.to(x.dtype), mask=inside)


@triton.jit
@no_type_check
def _quantise_rows(
    x_ptr,
    values_ptr,
    scales_ptr,
    dim,
    least_scale,
    largest,
    per_largest,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < dim
    x = tl.load(x_ptr + row * dim + column, mask=inside, other=0.0).to(tl.float32)
    reach = tl.max(tl.abs(x), axis=0)
    is_finite = tl.min((tl.abs(x) < float("inf")).to(tl.int32), axis=0) > 0
    # Maxima pass over NaN, so a row that has one, or an infinity, is marked as a whole.
    scale = tl.where(is_finite, tl.maximum(reach * per_largest, least_scale), float("nan"))
    scaled = tl.minimum(tl.maximum(tl.div_rn(x, scale), -largest), largest)
    scaled = tl.where(is_finite, scaled, float("nan"))
    tl.store(values_ptr + row * dim + column, scaled.to(tl.float8e4nv), mask=inside)
    tl.store(scales_ptr + row, scale)


def norm_modulate(
    x: Float[Tensor, "b n d"], scale: PerToken, shift: PerToken, eps: float
) -> Float[Tensor, "b n d"]:
    """Norm every token without weights, scale around one and shift; see `plain.norm_modulate`."""
    x = x.contiguous()
    tables, row_of = _tables(scale, shift)
    out = torch.empty_like(x)
    items, num_tokens, dim = x.shape
    _launch(
        _norm_modulate,
        items * num_tokens,
        dim,
        x,
        *tables,
        out,
        *_row_of_at(row_of, x),
        num_tokens,
        dim,
        *_steps(*tables),
        eps,
        LOOKUP=row_of is not None,
    )
    return out


def norm_modulate_twice(
    x: Float[Tensor, "b n d"], first: ScaleShift, second: ScaleShift, eps: float
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """Norm every token once and modulate it in two ways; see `plain.norm_modulate_twice`."""
    x = x.contiguous()
    tables, row_of = _tables(*first, *second)
    out = torch.empty_like(x), torch.empty_like(x)
    items, num_tokens, dim = x.shape
    _launch(
        _norm_modulate_twice,
        items * num_tokens,
        dim,
        x,
        *tables,
        *out,
        *_row_of_at(row_of, x),
        num_tokens,
        dim,
        *_steps(*tables),
        eps,
        LOOKUP=row_of is not None,
    )
    return out


def norm_rope(
    x: Float[Tensor, "b n d"], weight: Float[Tensor, " d"], rope: Rope, eps: float
) -> Float[Tensor, "b n d"]:
    """Norm queries or keys over all heads together, then rotate them; see `plain.norm_rope`.

    Tokens may be spaced out in memory, as slices of a joint projection are.
    """
    items, num_tokens, dim = x.shape
    at = _to_rotate(NormRope(x, weight, rope), in_place=False)
    _launch(_norm_rope, items * num_tokens, dim // 2, at.x, *at.others, dim // 2, eps, HALF=at.half)
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
    _launch(_norm_rope_both, items * most, pairs, q.x, *places, items, pairs, eps, HALF=q.half)
    return q.out, k.out


class _Places(NamedTuple):
    """Where a kernel finds tokens that it is to rotate."""

    half: int  # how far apart the numbers of a pair are
    x: Tensor
    others: Sequence[Tensor | int]
    out: Tensor


def _to_rotate(given: NormRope, *, in_place: bool) -> _Places:
    x, (cos, sin) = _dense_rows(given.x), (_dense_rows(table) for table in given.rope)
    table_item = 0 if cos.shape[0] == 1 else cos.stride(0)
    if cos.ndim == 4:  # "split": (b, heads, n, half)
        half, table_head, table_token = cos.shape[3], cos.stride(1), cos.stride(2)
    else:  # "interleaved": (b, n, d), every number twice
        half, table_head, table_token = 1, 2, cos.stride(1)
    assert cos.stride() == sin.stride()
    out = x if in_place else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    steps = [x.stride(0), x.stride(1), table_item, table_token, table_head, out.stride(0), out.stride(1)]
    return _Places(half, x, [given.weight, cos, sin, out, x.shape[1], *steps], out)


def gate_heads(heard: Float[Tensor, "b n d"], logits: Float[Tensor, "b n heads"]) -> Float[Tensor, "b n d"]:
    """Scale the heads of every token, in place; see `plain.gate_heads`."""
    heard, logits = heard.contiguous(), _dense_rows(logits)
    items, num_tokens, dim = heard.shape
    _launch(
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


def gate_add(
    x: Float[Tensor, "b n d"],
    gate: PerToken,
    update: Float[Tensor, "b n d"],
    *,
    in_place: bool = False,
) -> Float[Tensor, "b n d"]:
    """Add a gated update to the residual stream; see `plain.gate_add`."""
    if in_place and not x.is_contiguous():
        return x.addcmul_(spread(gate), update)
    x, update = x.contiguous(), update.contiguous()
    (table,), row_of = _tables(gate)
    out = x if in_place else torch.empty_like(x)
    items, num_tokens, dim = x.shape
    _launch(
        _gate_add,
        items * num_tokens,
        dim,
        x,
        table,
        update,
        out,
        *_row_of_at(row_of, x),
        num_tokens,
        dim,
        *_steps(table),
        LOOKUP=row_of is not None,
    )
    return out


def quantise_rows(x: Float[Tensor, "... d"]) -> Quantised:
    """Bring every row to 8 bits; see `plain.quantise_rows`."""
    x = x.contiguous()
    values = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    dim = x.shape[-1]
    least, largest = LEAST_SCALE, FP8_MAX
    _launch(_quantise_rows, scales.numel(), dim, x, values, scales, dim, least, largest, 1 / largest)
    return Quantised(values, scales)


def _dense_rows(x: Tensor) -> Tensor:
    """Bring the numbers of a row side by side; rows may be anywhere."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _tables(*rows: PerToken) -> tuple[list[Tensor], Tensor | None]:
    """Return what a kernel finds rows in, (items, tokens, d), or tables and the row of each token."""
    lookup = shared_lookup(*rows)
    if lookup is None:
        return [_dense_rows(spread(one)) for one in rows], None
    tables = [_dense_rows(one.table).unsqueeze(1) for one in rows if isinstance(one, TokenRows)]
    return tables, _dense_rows(lookup.row_of)


def _steps(*rows: Tensor) -> list[int]:
    """Return how far to step for the next item and token; rows that are shared stay where they are."""
    return [0 if one.shape[axis] == 1 else one.stride(axis) for one in rows for axis in (0, 1)]


def _row_of_at(row_of: Tensor | None, stand_in: Tensor) -> tuple[Tensor, int]:
    """Return where to look rows up and how far to step for the next item; or what is not read."""
    if row_of is None:
        return stand_in, 0
    return row_of, 0 if row_of.shape[0] == 1 else row_of.stride(0)


def _launch(
    kernel: _Kernel,
    programs: int,
    columns: int,
    x: Tensor,
    *arguments: Tensor | int | float,
    **constants: int,
) -> None:
    """Start a kernel where its first argument is, which need not be the current device.

    A program is as wide as a power of two; products may be fused into sums.
    """
    block = triton.next_power_of_2(columns)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # PyTorch leaves it so
        kernel[(programs,)](
            x,
            *arguments,
            **constants,
            BLOCK=block,
            num_warps=8 if block >= WIDE else 4,
            enable_fp_fusion=True,
        )
