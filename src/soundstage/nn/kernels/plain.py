"""The memory-bound steps of a transformer block in plain PyTorch: the reference of the Triton kernels.

They run everywhere, can be differentiated, and are what a compiler may fuse by itself. `fused` has a kernel
of the same name and the same arguments for each.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.norms import rms_norm
from soundstage.nn.rope import Rope, apply_rope

FP8_MAX = 448.0  # largest finite number of float8_e4m3fn
LEAST_SCALE = 1e-12  # of a row of zeros


class ScaleShift(NamedTuple):
    """How tokens are modulated: by one row per token, or per item of the batch."""

    scale: Float[Tensor, "#b #n d"]  # around one
    shift: Float[Tensor, "#b #n d"]


class Quantised(NamedTuple):
    """Rows of 8-bit numbers and what to multiply each row by."""

    values: Tensor  # (..., d) float8_e4m3fn
    scales: Float[Tensor, "... 1"]  # float32


def norm_modulate(
    x: Float[Tensor, "b n d"],
    scale: Float[Tensor, "#b #n d"],
    shift: Float[Tensor, "#b #n d"],
    eps: float,
) -> Float[Tensor, "b n d"]:
    """Norm every token without weights, scale around one and shift.

    Args:
        scale: One row per token, or per item of the batch.
        shift: Likewise.
    """
    normed = rms_norm(x, eps)
    if torch.is_grad_enabled():
        return torch.addcmul(shift, normed, 1 + scale)
    return torch.addcmul(shift, normed, 1 + scale, out=normed)


def norm_modulate_twice(
    x: Float[Tensor, "b n d"], first: ScaleShift, second: ScaleShift, eps: float
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """Norm every token once and modulate it in two ways, for two readers; see `norm_modulate`."""
    normed = rms_norm(x, eps)
    one = torch.addcmul(first.shift, normed, 1 + first.scale)
    if torch.is_grad_enabled():
        return one, torch.addcmul(second.shift, normed, 1 + second.scale)
    return one, torch.addcmul(second.shift, normed, 1 + second.scale, out=normed)


def norm_rope(
    x: Float[Tensor, "b n d"], weight: Float[Tensor, " d"], rope: Rope, eps: float
) -> Float[Tensor, "b n d"]:
    """Norm queries or keys over all heads together, then rotate them."""
    return apply_rope(rms_norm(x, eps, weight), rope)


def gate_add(
    x: Float[Tensor, "b n d"],
    gate: Float[Tensor, "#b #n d"],
    update: Float[Tensor, "b n d"],
    *,
    in_place: bool = False,
) -> Float[Tensor, "b n d"]:
    """Add a gated update to the residual stream.

    Args:
        gate: One row per token, or per item of the batch.
        in_place: Write the result over `x`.
    """
    return x.addcmul_(gate, update) if in_place else torch.addcmul(x, gate, update)


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
