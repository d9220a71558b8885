"""Draw scenes: a still background and floor, then the object and its shadow into a window of each frame.

Painting only the window around the object makes a clip several times cheaper than painting whole frames.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from jaxtyping import Float, Int
from torch import Tensor

from soundstage.core.types import VideoPixels
from soundstage.data.world.backdrop import Grid, draw_backdrop
from soundstage.data.world.bounce import GROUND, Bounce
from soundstage.data.world.kind import COLOURS
from soundstage.data.world.motion import MAX_SQUASH
from soundstage.data.world.shapes import SHAPE_DISTANCES

WIDENING = 0.7  # how much of the squash goes into width
RIM = 0.16  # radii; the object darkens towards its outline, so that it stands out from any background


def render_bounces(
    scenes: Sequence[Bounce],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str = "cpu",
) -> VideoPixels:
    """Draw each scene as a clip; frame k shows time k / frame_rate.

    Positions are sub-pixel and edges are anti-aliased, so motion slower than a pixel a frame still shows.
    """
    device = torch.device(device)
    still = draw_backdrop(scenes, height=height, width=width, device=device).mul_(2).sub_(1)
    pixels = still[:, :, None].expand(-1, -1, num_frames, -1, -1).contiguous()
    poses = _poses(scenes, num_frames, frame_rate).to(device)
    _paint_shadows(pixels, poses, scenes)
    for shape in SHAPE_DISTANCES:
        rows = [row for row, scene in enumerate(scenes) if scene.shape == shape]
        if rows:
            _paint_objects(pixels, poses, scenes, rows, shape)
    return pixels


def _poses(
    scenes: Sequence[Bounce], num_frames: int, frame_rate: Fraction | float | int
) -> Float[Tensor, "b frames 3"]:
    """Centre x, centre y and squash of every frame, in picture heights."""
    times = [frame / float(frame_rate) for frame in range(num_frames)]
    return torch.tensor(
        [[(pose.x, pose.y, pose.squash) for pose in scene.motion.poses(times)] for scene in scenes],
        dtype=torch.float32,
    )


def _paint_shadows(pixels: VideoPixels, poses: Float[Tensor, "b frames 3"], scenes: Sequence[Bounce]) -> None:
    """Darken the floor under the object, more the lower it is: contact can be seen even in one frame."""
    height, width = pixels.shape[-2:]
    radius = _column([scene.radius for scene in scenes], pixels.device)  # (b, 1)
    foot = _column([scene.motion.foot for scene in scenes], pixels.device)
    gap = (GROUND - poses[..., 1] - foot * (1 - poses[..., 2])).clamp_min(0)  # (b, frames)
    strength = 0.55 * torch.exp(-gap / 0.16)
    spread = radius * (0.75 + gap)
    grid = Grid.of(height, width, pixels.device)
    aside = (grid.x - poses[..., 0, None]) / spread[..., None]  # (b, frames, width)
    across = torch.exp(-1.5 * aside**2)
    top, bottom = max(round((GROUND - 0.06) * height), 0), min(round((GROUND + 0.08) * height), height)
    down = torch.exp(-(((grid.y[top:bottom] - GROUND - 0.006) / 0.028) ** 2))  # (rows, 1)
    dark = (strength[..., None] * across)[:, :, None, :] * down  # (b, frames, rows, width)
    strip = pixels[..., top:bottom, :]
    strip.sub_((strip + 1).mul_(dark[:, None]))  # black is -1


def _paint_objects(
    pixels: VideoPixels,
    poses: Float[Tensor, "b frames 3"],
    scenes: Sequence[Bounce],
    rows: list[int],
    shape: str,
) -> None:
    """Blend one kind of object into a square window around it in every frame."""
    _, _, num_frames, height, width = pixels.shape
    device = pixels.device
    radius = _column([scenes[row].radius for row in rows], device)[..., None, None]  # (n, 1, 1, 1)
    x, y, squash = poses[rows][..., None, None].unbind(2)  # (n, frames, 1, 1) each
    size = 2 * math.ceil(float(radius.max()) * (1 + WIDENING * MAX_SQUASH) * height) + 2
    across = _window(x * height, size, width)  # (n, frames, 1, columns)
    down = _window(y * height, size, height).mT  # (n, frames, rows, 1)
    offset_x = ((across + 0.5) / height - x) / (radius * (1 + WIDENING * squash))
    offset_y = ((down + 0.5) / height - y) / (radius * (1 - squash))

    distance = SHAPE_DISTANCES[shape](offset_x, offset_y)  # radii, negative inside
    cover = (0.5 - distance * (radius * height)).clamp_(0, 1)
    from_above = (1.0 - 0.14 * offset_y).clamp_(0.8, 1.1)
    light = (distance * (-1 / RIM)).clamp_(0, 1).mul_(0.5).add_(0.5).mul_(from_above)
    colour = torch.tensor([COLOURS[scenes[row].colour] for row in rows], dtype=torch.float32) / 255
    paint = colour.to(device)[:, :, None, None, None] * light[:, None]  # (n, 3, frames, rows, columns)
    paint.clamp_(max=1).mul_(2).sub_(1)

    frame = torch.arange(num_frames, device=device)[:, None, None]
    places = ((frame * height + down) * width + across).flatten(1)
    for index, row in enumerate(rows):  # in place, one clip at a time: no copy of the whole batch
        canvas = pixels[row].view(3, -1)
        place = places[index].expand(3, -1)
        blend = torch.lerp(canvas.gather(1, place), paint[index].flatten(1), cover[index].flatten())
        canvas.scatter_(1, place, blend)


def _window(centre: Float[Tensor, "n frames 1 1"], size: int, extent: int) -> Int[Tensor, "n frames 1 size"]:
    """Indices of the `size` pixels around `centre`, moved to lie within `extent` pixels."""
    size = min(size, extent)
    first = (centre.round().long() - size // 2).clamp_(0, extent - size)
    return first + torch.arange(size, device=centre.device)


def _column(values: list[float], device: torch.device) -> Float[Tensor, "b 1"]:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
