"""The memory-bound steps of a transformer block in plain PyTorch: the reference of the Triton kernels.

They run everywhere, can be differentiated, and are what a compiler may fuse by itself. `fused` has a kernel
of the same name and the same arguments for each.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.kernels.lookup import PerToken, has_runs, in_runs, spread
from soundstage.nn.norms import rms_norm
from soundstage.nn.rope import Rope, apply_rope

FP8_MAX = 448.0  # largest finite number of float8_e4m3fn
LEAST_SCALE = 1e-12  # of a row of zeros


class ScaleShift(NamedTuple):
    """How tokens are modulated: by one row per token, or per item of the batch."""

    scale: PerToken  # around one
    shift: PerToken


class NormRope(NamedTuple):
    """Queries or keys, what they are normed with and how they are rotated."""

    x: Float[Tensor, "b n d"]
    weight: Float[Tensor, " d"]
    rope: Rope


class Quantised(NamedTuple):
    """Rows of 8-bit numbers and what to multiply each row by."""

    values: Tensor  # (..., d) float8_e4m3fn
    scales: Float[Tensor, "... 1"]  # float32


def norm_modulate(
    x: Float[Tensor, "b n d"], scale: PerToken, shift: PerToken, eps: float
) -> Float[Tensor, "b n d"]:
    """Norm every token without weights, scale around one and shift.

    Args:
        scale: One row per token, or per item of the batch.
        shift: Likewise.
    """
    normed = rms_norm(x, eps)
    return scale_shift(normed, scale, shift, out=None if torch.is_grad_enabled() else normed)


def norm_modulate_twice(
    x: Float[Tensor, "b n d"], first: ScaleShift, second: ScaleShift, eps: float
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """Norm every token once and modulate it in two ways, for two readers; see `norm_modulate`."""
    normed = rms_norm(x, eps)
    one = scale_shift(normed, *first)
    return one, scale_shift(normed, *second, out=None if torch.is_grad_enabled() else normed)


def scale_shift(
    x: Float[Tensor, "b n d"],
    scale: PerToken,
    shift: PerToken,
    *,
    out: Float[Tensor, "b n d"] | None = None,
) -> Float[Tensor, "b n d"]:
    """Scale every token around one and shift.

    Args:
        out: What to write the result to, `x` itself if it is not needed any more.
    """
    if not has_runs(scale, shift):
        return torch.addcmul(spread(shift), x, 1 + spread(scale), out=out)
    out = torch.empty_like(x) if out is None else out
    for place, (factor, added) in in_runs(len(x), scale, shift):
        torch.addcmul(added, x[place], 1 + factor, out=out[place])
    return out


def norm_rope(
    x: Float[Tensor, "b n d"], weight: Float[Tensor, " d"], rope: Rope, eps: float
) -> Float[Tensor, "b n d"]:
    """Norm queries or keys over all heads together, then rotate them."""
    return apply_rope(rms_norm(x, eps, weight), rope)


def norm_rope_both(
    queries: NormRope, keys: NormRope, eps: float, *, in_place: bool = False
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b s d"]]:
    """Norm and rotate the queries and the keys of one attention; see `norm_rope`.

    Args:
        in_place: The results may be written over what they are made of.
    """
    del in_place  # nothing is saved here
    return norm_rope(*queries, eps), norm_rope(*keys, eps)


def gate_heads(heard: Float[Tensor, "b n d"], logits: Float[Tensor, "b n heads"]) -> Float[Tensor, "b n d"]:
    """Scale every head's part of a token by a factor in (0, 2), 1 at logit 0.

    Args:
        heard: Written over where no gradient is wanted.
    """
    gates = (2 * torch.sigmoid(logits)).unsqueeze(-1)
    by_head = heard.reshape(*heard.shape[:-1], logits.shape[-1], -1)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (by_head * gates).flatten(-2)
    return by_head.mul_(gates).flatten(-2)


def gate_add(
    x: Float[Tensor, "b n d"],
    gate: PerToken,
    update: Float[Tensor, "b n d"],
    *,
    in_place: bool = False,
) -> Float[Tensor, "b n d"]:
    """Add a gated update to the residual stream.

    Args:
        gate: One row per token, or per item of the batch.
        in_place: Write the result over `x`.
    """
    if not in_place:
        return torch.addcmul(x, spread(gate), update)
    if not has_runs(gate):
        return x.addcmul_(spread(gate), update)
    for place, (row,) in in_runs(len(x), gate):
        x[place].addcmul_(row, update[place])
    return x


def quantise_rows(x: Float[Tensor, "... d"]) -> Quantised:
    """Bring every row to 8 bits (float8_e4m3fn) such that its largest number is the largest there is.

    A number keeps 3 bits of mantissa: it comes back within 1/16 of itself, or within scale / 1024 where it is
    tiny. A row with an infinity or a NaN comes back as NaN.

    Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433, table 1.
    """
    wide = x.float()
    scales = (wide.abs().amax(-1, keepdim=True) * (1 / FP8_MAX)).clamp(min=LEAST_SCALE)
    values = (wide / scales).clamp(-FP8_MAX, FP8_MAX)
    return Quantised(values.to(torch.float8_e4m3fn), scales)
