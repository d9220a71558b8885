"""The memory-bound steps of a transformer block as Triton kernels: each tensor is read once and written once.

One program per token, statistics in float32. Intermediate results are rounded to the dtype of the tokens
where `plain` rounds them, so both agree up to the order of a sum: to one unit in the last place. This module
imports Triton; import it through `choice`.
"""

from collections.abc import Callable
from typing import Protocol, no_type_check, runtime_checkable

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.kernels.lookup import PerToken, TokenRows, shared_lookup, spread
from soundstage.nn.kernels.plain import FP8_MAX, LEAST_SCALE, Quantised, ScaleShift
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
def _norm_rope(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    num_tokens,
    num_pairs,
    x_item,
    x_token,
    table_item,
    table_token,
    table_head,
    eps,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Pair p of a token is element p % HALF of both halves of head p // HALF; neighbours are heads of two.
    row = tl.program_id(0).to(tl.int64)
    item = row // num_tokens
    token = row % num_tokens
    pair = tl.arange(0, BLOCK)
    inside = pair < num_pairs
    head = pair // HALF
    element = pair % HALF
    first_at = head * (2 * HALF) + element
    second_at = first_at + HALF
    source = x_ptr + item * x_item + token * x_token
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
    table_at = item * table_item + token * table_token + head * table_head + element
    cos = tl.load(cos_ptr + table_at, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + table_at, mask=inside, other=0.0).to(tl.float32)
    target = out_ptr + row * (2 * num_pairs)
    tl.store(target + first_at, (first * cos - second * sin).to(dtype), mask=inside)
    tl.store(target + second_at, (second * cos + first * sin).to(dtype), mask=inside)


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
    x, cos, sin = _dense_rows(x), _dense_rows(rope.cos), _dense_rows(rope.sin)
    items, num_tokens, dim = x.shape
    table_item = 0 if cos.shape[0] == 1 else cos.stride(0)
    if cos.ndim == 4:  # "split": (b, heads, n, half)
        half, table_head, table_token = cos.shape[3], cos.stride(1), cos.stride(2)
    else:  # "interleaved": (b, n, d), every number twice
        half, table_head, table_token = 1, 2, cos.stride(1)
    assert cos.stride() == sin.stride()
    out = torch.empty((items, num_tokens, dim), dtype=x.dtype, device=x.device)
    _launch(
        _norm_rope,
        items * num_tokens,
        dim // 2,
        x,
        weight,
        cos,
        sin,
        out,
        num_tokens,
        dim // 2,
        x.stride(0),
        x.stride(1),
        table_item,
        table_token,
        table_head,
        eps,
        HALF=half,
    )
    return out


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
