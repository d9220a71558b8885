"""Attention over some of the keys at a time, exact, for keys that are never all in one place.

A part is what its keys alone would give, with the logarithm of the sum of their exponentiated scores. Two
parts become one by weighing each with its share of the sum:

    log_sums = log(exp(a) + exp(b));    values = values_a exp(a - log_sums) + values_b exp(b - log_sums)

PyTorch's kernels make both at once, but its public function returns the values only:

| on | without a bias | with one |
|---|---|---|
| CPU | flash | flash |
| GPU, 16-bit | flash | written out, some queries at a time |
| GPU, float32 | efficient | written out, some queries at a time |
| elsewhere | written out | written out |

Sources: Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", arXiv 1805.02867; Liu et al.
2023, "Ring Attention with Blockwise Transformers", arXiv 2310.01889, section 3.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.nn.attention_backends import HALVES, Bias, Heads, OtherHeads

SCORE_BYTES = 2**28  # of the float32 scores that exist at once where attention is written out


class Part(NamedTuple):
    """What queries hear from some of the keys."""

    values: Float[Tensor, "b heads n d"]
    log_sums: Float[Tensor, "b heads n"]  # of exp(score), float32 or wider


def attend_to_part(q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> Part:
    """Attend to some of the keys, with scores q k / sqrt(d) + bias."""
    return KERNELS[part_kernel(q.device, q.dtype, q.shape[-1], has_bias=bias is not None)](q, k, v, bias)


def hear_nothing(q: Heads) -> Part:
    """Return what queries hear from no key."""
    return Part(torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf, dtype=torch.float32))


def merge(a: Part, b: Part) -> Part:
    """Make one part of two with different keys; its values are in float32 or wider."""
    # Two parts of no key have no share of anything: any will do.
    weight = torch.sigmoid(b.log_sums - a.log_sums).nan_to_num(0.5).unsqueeze(-1)
    wide = weight.dtype
    values = torch.lerp(a.values.to(wide), b.values.to(wide), weight)
    return Part(values, torch.logaddexp(a.log_sums, b.log_sums))


def part_kernel(device: torch.device, dtype: torch.dtype, head_dim: int, *, has_bias: bool = False) -> str:
    """Name what attends to a part."""
    if device.type == "cpu":
        return "flash-cpu"
    if device.type == "cuda" and not has_bias and head_dim % 8 == 0 and head_dim <= 256:
        return "flash" if dtype in HALVES else "efficient"
    return "math"


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Part:
    values, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    return Part(values, log_sums)


def _flash(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Part:
    values, log_sums, *_others = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    return Part(values, log_sums)


def _efficient(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Part:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    values, log_sums, *_others = attend(q, k, v, None, compute_log_sumexp=True)
    return Part(values, log_sums[..., : q.shape[-2]])  # the kernel pads them


def _math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Part:
    """Write attention out, for as many queries at a time as their scores have room."""
    at_once = max(1, SCORE_BYTES // (4 * q.shape[0] * q.shape[1] * k.shape[-2]))
    keys = k.transpose(-1, -2)
    values, log_sums = [], []
    for start in range(0, q.shape[-2], at_once):
        rows = slice(start, start + at_once)
        scores = ((q[..., rows, :] * q.shape[-1] ** -0.5) @ keys).float()
        if bias is not None:
            scores += bias if bias.shape[-2] == 1 else bias[..., rows, :]
        sums = scores.logsumexp(-1)
        values.append(scores.sub_(sums.unsqueeze(-1)).exp_().to(v.dtype) @ v)
        log_sums.append(sums)
    return Part(torch.cat(values, dim=-2), torch.cat(log_sums, dim=-1))


KERNELS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Part]] = {
    "flash-cpu": _flash_cpu,
    "flash": _flash,
    "efficient": _efficient,
    "math": _math,
}
