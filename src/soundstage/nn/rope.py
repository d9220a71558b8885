"""Rotary position embedding with one frequency ladder across all heads.

Positions are continuous (seconds, pixels, indices), scaled by `max_pos` to about [-1, 1]. One ladder of
frequencies from pi/2 to theta * pi/2 is shared out over the heads, not repeated in each: the first head turns
slowly, the last one fast. With several axes the ladder is interleaved, axis fastest.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RopeKind = Literal["split", "interleaved"]
Precision = Literal["float64", "float32"]


class Rope(NamedTuple):
    """Cosines and sines of every token's angles, float32.

    "split" tables are (b, heads, n, head_dim / 2), "interleaved" ones (b, n, heads * head_dim); b may be 1.
    Where there are fewer rows than tokens, each serves equally many tokens that follow each other.
    """

    cos: Tensor
    sin: Tensor


def frequency_ladder(count: int, theta: float, precision: Precision = "float64") -> Float[Tensor, " count"]:
    """Space `count` frequencies geometrically from pi/2 to theta * pi/2, both included.

    Args:
        precision: What the ladder is computed in before it is rounded to float32. Checkpoints differ in it.
    """
    dtype = torch.float64 if precision == "float64" else torch.float32
    steps = torch.linspace(0, 1, count, dtype=dtype, device="cpu")  # some accelerators lack float64
    return (theta**steps * (math.pi / 2)).float()


def rope_table(
    positions: Float[Tensor, "b axes n"],
    max_pos: Sequence[int | float],
    dim: int,
    heads: int,
    theta: float = 10_000.0,
    kind: RopeKind = "split",
    precision: Precision = "float64",
) -> Rope:
    """Tabulate the rotation of every token.

    Args:
        positions: One number per token and axis; of an interval, its middle.
        max_pos: Per axis, the position that maps to +1 (0 maps to -1); positions beyond it are fine.
        dim: Width of all heads together.

    Source: Su et al. 2021, eq. 15; LTX-Video, arXiv 2501.00103, for fractional coordinates.
    """
    axes = positions.shape[1]
    ladder = frequency_ladder(dim // (2 * axes), theta, precision).to(positions.device)
    extent = torch.tensor(list(max_pos), dtype=torch.float32, device=positions.device)
    fraction = 2 * (positions.float().transpose(1, 2) / extent) - 1  # (b, n, axes)
    angles = (fraction.unsqueeze(-2) * ladder.unsqueeze(-1)).flatten(-2)  # (b, n, ladder * axes)
    # What does not divide stands still, in the first head; a token's angles lie side by side, for kernels.
    angles = F.pad(angles, (dim // 2 - angles.shape[-1], 0)).contiguous()
    if kind == "interleaved":
        angles = angles.repeat_interleave(2, dim=-1)
    else:
        angles = rearrange(angles, "b n (heads half) -> b heads n half", heads=heads)
    return Rope(angles.cos(), angles.sin())


def apply_rope(x: Float[Tensor, "b n d"], rope: Rope) -> Float[Tensor, "b n d"]:
    """Rotate queries or keys, all heads side by side, at the tables' precision.

    "split" tables pair element i with i + head_dim / 2 of a head, "interleaved" ones neighbours.
    """
    num_rows = rope.cos.shape[-2]
    if num_rows == x.shape[1]:
        return _rotate(x, rope)
    shared = Rope(*(table.unsqueeze(-2) for table in rope))
    return _rotate(x.view(x.shape[0], num_rows, -1, x.shape[2]), shared).flatten(1, 2)


def _rotate(x: Float[Tensor, "b *n d"], rope: Rope) -> Float[Tensor, "b *n d"]:
    if rope.cos.ndim == x.ndim:
        even, odd = rearrange(x, "... (pairs two) -> two ... pairs", two=2)
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return (x * rope.cos + turned * rope.sin).to(x.dtype)
    cos, sin = rope.cos.movedim(1, -2), rope.sin.movedim(1, -2)  # (b, *n, heads, half)
    first, second = x.view(*x.shape[:-1], cos.shape[-2], 2, cos.shape[-1]).unbind(-2)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler finds places by itself
        rotated = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2)
        return rotated.flatten(-3).to(x.dtype)
    rotated = x.new_empty(
        (*first.shape[:-1], 2, first.shape[-1]), dtype=torch.promote_types(x.dtype, cos.dtype)
    )
    torch.mul(first, cos, out=rotated[..., 0, :]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=rotated[..., 1, :]).addcmul_(first, sin)
    return rotated.flatten(-3).to(x.dtype)
