"""Cut what a moving camera sees out of a wider picture, at fractions of a pixel."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import VideoPixels
from soundstage.data.world.camera import Camera


def film(
    wide: Float[Tensor, "b 3 worlds height wider"],
    cameras: Sequence[Camera],
    *,
    num_frames: int,
    width: int,
    frame_rate: Fraction | float | int,
) -> VideoPixels:
    """Show frame k of each world as its camera sees it at time k / frame_rate.

    The four nearest columns are combined by a cubic (Catmull-Rom), which keeps edges about equally sharp
    wherever between two pixels they fall; the result is held within [-1, 1].

    Args:
        wide: The worlds, `camera.world_width` wide; either `num_frames` frames, or one that stands for all.
        width: Pixels of the picture.
    """
    height, wider = wide.shape[-2:]
    times = [frame / float(frame_rate) for frame in range(num_frames)]
    offsets = torch.tensor(
        [[camera.offset(time) * height for time in times] for camera in cameras], dtype=torch.float64
    )
    first = offsets.floor()
    share = (offsets - first).to(wide.device, torch.float32)[..., None]  # (b, frames, 1)
    columns = (first.long()[..., None] + torch.arange(width)).to(wide.device)  # (b, frames, width)
    weights = (
        share * (-0.5 + share * (1 - 0.5 * share)),
        1 + share**2 * (1.5 * share - 2.5),
        share * (0.5 + share * (2 - 1.5 * share)),
        share**2 * (0.5 * share - 0.5),
    )
    worlds = wide.expand(-1, -1, num_frames, -1, -1)
    pixels = wide.new_zeros(len(wide), 3, num_frames, height, width)
    for step, weight in enumerate(weights, start=-1):
        places = (columns + step).clamp_(0, wider - 1)[:, None, :, None].expand_as(pixels)
        pixels.addcmul_(worlds.gather(-1, places), weight[:, None, :, None].expand_as(pixels))
    return pixels.clamp_(-1, 1)
