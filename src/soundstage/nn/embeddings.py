"""Sinusoidal embedding of noise levels and the small network behind it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoidal_embedding(
    t: Float[Tensor, "..."], dim: int, period: float = 10_000.0
) -> Float[Tensor, "... dim"]:
    """Embed scalars as `dim / 2` cosines followed by as many sines, in float32.

    The wavelengths run from 2 pi up to, not including, `2 pi * period`.

    Source: Vaswani et al. 2017, section 3.5, cosines first.
    """
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(period) / half)
    )
    angles = t.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Turn a scaled noise level into a vector as wide as the stream."""

    def __init__(self, dim: int, num_frequencies: int = 256) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(num_frequencies, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, t: Float[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "... d"]:
        """Embed; the sinusoids are float32, the network runs in `dtype`."""
        waves = sinusoidal_embedding(t, self.linear_1.in_features).to(dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(waves)))
        return out
