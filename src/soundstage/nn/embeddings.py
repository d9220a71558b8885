"""Sinusoidal embeddings of noise levels and of positions, and the small network behind the former."""

import math
from collections.abc import Sequence

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


def position_waves(
    positions: Float[Tensor, "b axes n"], max_pos: Sequence[int | float], octaves: int
) -> Float[Tensor, "b n waves"]:
    """Embed positions as cosines and sines of half a turn up to each `max_pos` and of octaves above; float32.

    Returns:
        `2 * axes * octaves` waves.

    Source: Vaswani et al. 2017, section 3.5; octaves as in Mildenhall et al. 2020 (NeRF), eq. 4.
    """
    extent = torch.tensor(list(max_pos), dtype=torch.float32, device=positions.device)
    turns = math.pi * 2.0 ** torch.arange(octaves, dtype=torch.float32, device=positions.device)
    angles = ((positions.float().transpose(1, 2) / extent).unsqueeze(-1) * turns).flatten(-2)
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
