"""The memory-bound steps of a transformer block as Triton kernels: each tensor is read once and written once.

Those of attention are in `fused_attention`.

One program per token, statistics in float32. Intermediate results are rounded to the dtype of the tokens
where `plain` rounds them, so both agree up to the order of a sum: to one unit in the last place. This module
imports Triton; import it through `choice`.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.kernels import launching
from soundstage.nn.kernels.launching import dense_rows
from soundstage.nn.kernels.lookup import PerToken, TokenRows, shared_lookup, spread
from soundstage.nn.kernels.plain import FP8_MAX, LEAST_SCALE, Quantised, ScaleShift


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
    launching.launch(
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
    launching.launch(
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
    launching.launch(
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
    launching.launch(_quantise_rows, scales.numel(), dim, x, values, scales, dim, least, largest, 1 / largest)
    return Quantised(values, scales)


def _tables(*rows: PerToken) -> tuple[list[Tensor], Tensor | None]:
    """Return what a kernel finds rows in, (items, tokens, d), or tables and the row of each token."""
    lookup = shared_lookup(*rows)
    if lookup is None:
        return [dense_rows(spread(one)) for one in rows], None
    tables = [dense_rows(one.table).unsqueeze(1) for one in rows if isinstance(one, TokenRows)]
    return tables, dense_rows(lookup.row_of)


def _steps(*rows: Tensor) -> list[int]:
    """Return how far to step for the next item and token; rows that are shared stay where they are."""
    return [0 if one.shape[axis] == 1 else one.stride(axis) for one in rows for axis in (0, 1)]


def _row_of_at(row_of: Tensor | None, stand_in: Tensor) -> tuple[Tensor, int]:
    """Return where to look rows up and how far to step for the next item; or what is not read."""
    if row_of is None:
        return stand_in, 0
    return row_of, 0 if row_of.shape[0] == 1 else row_of.stride(0)
