"""Where every token lies in seconds and pixels, as [start, end) intervals.

Both streams measure time in seconds from the same zero: that is what lets cross-modal attention align them.

    video latent frame     0        1              2                 (8 pixel frames each, the first has one)
    pixel frame           |0|1 2 3 4 5 6 7 8|9 10 11 12 13 ...
    audio token           |0|  1  |  2  |  3  |                      (4 mel frames each, the first has one)
"""

from fractions import Fraction

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import Positions


def causal_intervals(count: int, factor: int) -> Float[Tensor, "count 2"]:
    """Span latent steps in input steps when the first latent step covers a single input step."""
    bounds = (torch.arange(count + 1, dtype=torch.float32) * factor - (factor - 1)).clamp(min=0)
    return torch.stack([bounds[:-1], bounds[1:]], dim=-1)


def video_positions(
    geometry: VideoGeometry,
    num_latent_frames: int,
    rows: int,
    columns: int,
    frame_rate: Fraction | float | int,
    batch: int = 1,
) -> Positions:
    """Lay out a clip's tokens on the axes time (seconds), height and width (pixels).

    Args:
        rows: Tokens from top to bottom; with patches, fewer than latent rows.
        columns: Tokens from left to right.

    Source: LTX-2, arXiv 2601.03233.
    """
    seconds = causal_intervals(num_latent_frames, geometry.temporal_factor) / float(frame_rate)
    down, across = (_cells(count, geometry.token_size) for count in (rows, columns))
    grid = {"b": batch, "f": num_latent_frames, "h": rows, "w": columns}
    axes = (
        repeat(seconds, "f two -> b (f h w) two", **grid),
        repeat(down, "h two -> b (f h w) two", **grid),
        repeat(across, "w two -> b (f h w) two", **grid),
    )
    return torch.stack(axes, dim=1)


def audio_positions(geometry: AudioGeometry, num_tokens: int, batch: int = 1) -> Positions:
    """Lay out audio tokens on the time axis (seconds)."""
    mel_frames = causal_intervals(num_tokens, geometry.downsample_factor)
    seconds = mel_frames * geometry.hop_length / geometry.sample_rate
    return repeat(seconds, "n two -> b 1 n two", b=batch)


def _cells(count: int, size: int) -> Tensor:
    starts = torch.arange(count, dtype=torch.float32) * size
    return torch.stack([starts, starts + size], dim=-1)
