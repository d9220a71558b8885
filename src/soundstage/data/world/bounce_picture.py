"""Draw scenes: a still background and floor, then the object and its shadow into a window of each frame.

Painting only the window around the object makes a clip several times cheaper than painting whole frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from soundstage.core.types import VideoPixels
from soundstage.data.world.backdrop import Grid, Stage, draw_backdrop
from soundstage.data.world.bounce import GROUND, Bounce
from soundstage.data.world.camera import Camera, world_width
from soundstage.data.world.filming import film
from soundstage.data.world.kind import COLOURS
from soundstage.data.world.motion import MAX_SQUASH, Pose
from soundstage.data.world.shapes import SHAPE_DISTANCES

Poses = Float[Tensor, "n frames 3"]

WIDENING = 0.7  # how much of the squash goes into width
STRIPE = 0.17  # radii; half the width of the stripe on what rolls
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
    pixels = render_stages(
        scenes, num_frames=num_frames, height=height, width=width, frame_rate=frame_rate, device=device
    )
    times = [frame / float(frame_rate) for frame in range(num_frames)]
    poses = poses_of([(scene.motion, scene.camera) for scene in scenes], times).to(pixels.device)
    things = [Thing(scene.colour, scene.shape, scene.radius, scene.motion.foot) for scene in scenes]
    paint_things(pixels, poses, things)
    return pixels


def render_stages(
    scenes: Sequence[Stage],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str = "cpu",
) -> VideoPixels:
    """Draw background and floor alone, as the camera of each scene sees them."""
    device = torch.device(device)
    pixels = torch.empty(len(scenes), 3, num_frames, height, width, device=device)
    for moves in (False, True):
        rows = [row for row, scene in enumerate(scenes) if (scene.camera.turn != "still") == moves]
        if not rows:
            continue
        group = [scenes[row] for row in rows]
        drawn = world_width(height, width) if moves else width
        still = draw_backdrop(group, height=height, width=drawn, device=device).mul_(2).sub_(1)[:, :, None]
        if moves:
            cameras = [scene.camera for scene in group]
            still = film(still, cameras, num_frames=num_frames, width=width, frame_rate=frame_rate)
        pixels[rows] = still
    return pixels


@runtime_checkable
class Track(Protocol):
    """Where an object is at any time, in the world."""

    def pose(self, time: float) -> Pose:
        """Position of the centre and squash."""


@dataclass(frozen=True)
class Thing:
    """What an object looks like."""

    colour: str
    shape: str
    radius: float  # picture heights
    foot: float  # from the centre to the lowest point
    rolls: bool = False  # whether it turns as it moves, which a stripe shows


def poses_of(tracks: Sequence[tuple[Track, Camera]], times: Sequence[float]) -> Poses:
    """Centre x, centre y and squash at each time, in picture heights from the picture's corner."""
    rows = []
    for track, camera in tracks:
        poses = [track.pose(time) for time in times]
        rows.append(
            [
                (pose.x - camera.offset(time), pose.y, pose.squash)
                for pose, time in zip(poses, times, strict=True)
            ]
        )
    return torch.tensor(rows, dtype=torch.float32)


def paint_things(
    pixels: VideoPixels, poses: Poses, things: Sequence[Thing], rows: Sequence[int] | None = None
) -> None:
    """Paint one object, with its shadow, into each clip, or into each of `rows`."""
    rows = range(len(pixels)) if rows is None else rows
    _paint_shadows(pixels, poses, things, rows)
    for shape in SHAPE_DISTANCES:
        chosen = [index for index, thing in enumerate(things) if thing.shape == shape]
        if chosen:
            _paint_objects(
                pixels, poses[chosen], [things[index] for index in chosen], [rows[index] for index in chosen]
            )


def _paint_shadows(pixels: VideoPixels, poses: Poses, things: Sequence[Thing], rows: Sequence[int]) -> None:
    """Darken the floor under the object, more the lower it is: contact can be seen even in one frame."""
    height, width = pixels.shape[-2:]
    radius = _column([thing.radius for thing in things], pixels.device)  # (n, 1)
    foot = _column([thing.foot for thing in things], pixels.device)
    gap = (GROUND - poses[..., 1] - foot * (1 - poses[..., 2])).clamp_min(0)  # (n, frames)
    strength = 0.55 * torch.exp(-gap / 0.16)
    spread = radius * (0.75 + gap)
    grid = Grid.of(height, width, pixels.device)
    aside = (grid.x - poses[..., 0, None]) / spread[..., None]  # (n, frames, width)
    across = torch.exp(-1.5 * aside**2)
    top, bottom = max(round((GROUND - 0.06) * height), 0), min(round((GROUND + 0.08) * height), height)
    down = torch.exp(-(((grid.y[top:bottom] - GROUND - 0.006) / 0.028) ** 2))  # (rows, 1)
    dark = (strength[..., None] * across)[:, :, None, :] * down  # (n, frames, rows, width)
    for index, row in enumerate(rows):
        strip = pixels[row, ..., top:bottom, :]
        strip.sub_((strip + 1).mul_(dark[index]))  # black is -1


def _paint_objects(
    pixels: VideoPixels,
    poses: Poses,
    things: Sequence[Thing],
    rows: Sequence[int],
) -> None:
    """Blend objects of one shape, each into a square window around it in every frame of its row."""
    _, _, num_frames, height, width = pixels.shape
    device = pixels.device
    radius = _column([thing.radius for thing in things], device)[..., None, None]  # (n, 1, 1, 1)
    x, y, squash = poses[..., None, None].unbind(2)  # (n, frames, 1, 1) each
    size = 2 * math.ceil(float(radius.max()) * (1 + WIDENING * MAX_SQUASH) * height) + 2
    across = _window(x * height, size, width)  # (n, frames, 1, columns)
    down = _window(y * height, size, height).mT  # (n, frames, rows, 1)
    offset_x = ((across + 0.5) / height - x) / (radius * (1 + WIDENING * squash))
    offset_y = ((down + 0.5) / height - y) / (radius * (1 - squash))

    distance = SHAPE_DISTANCES[things[0].shape](offset_x, offset_y)  # radii, negative inside
    cover = (0.5 - distance * (radius * height)).clamp_(0, 1)
    from_above = (1.0 - 0.14 * offset_y).clamp_(0.8, 1.1)
    stripe = _stripes(things, offset_x, offset_y, x - width / height / 2)
    light = (distance * (-1 / RIM)).clamp_(0, 1).mul_(0.5).add_(0.5).mul_(from_above).mul_(stripe)
    colour = torch.tensor([COLOURS[thing.colour] for thing in things], dtype=torch.float32) / 255
    paint = colour.to(device)[:, :, None, None, None] * light[:, None]  # (n, 3, frames, rows, columns)
    paint.clamp_(max=1).mul_(2).sub_(1)

    frame = torch.arange(num_frames, device=device)[:, None, None]
    places = ((frame * height + down) * width + across).flatten(1)
    for index, row in enumerate(rows):  # in place, one clip at a time: no copy of the whole batch
        canvas = pixels[row].view(3, -1)
        place = places[index].expand(3, -1)
        blend = torch.lerp(canvas.gather(1, place), paint[index].flatten(1), cover[index].flatten())
        canvas.scatter_(1, place, blend)


def _stripes(things: Sequence[Thing], offset_x: Tensor, offset_y: Tensor, x: Tensor) -> Tensor:
    """Darken a band through the middle of what rolls, turned by way over radius."""
    rolls = _column([float(thing.rolls) for thing in things], x.device)[..., None, None]
    if not bool(rolls.any()):
        return torch.ones_like(x)
    angle = x / _column([thing.radius for thing in things], x.device)[..., None, None]
    across = (offset_x * angle.cos() + offset_y * angle.sin()).abs()
    band = ((STRIPE - across) * 8 + 0.5).clamp(0, 1)
    return 1 - 0.55 * band * rolls


def _window(centre: Float[Tensor, "n frames 1 1"], size: int, extent: int) -> Int[Tensor, "n frames 1 size"]:
    """Indices of the `size` pixels around `centre`, moved to lie within `extent` pixels."""
    size = min(size, extent)
    first = (centre.round().long() - size // 2).clamp_(0, extent - size)
    return first + torch.arange(size, device=centre.device)


def _column(values: list[float], device: torch.device) -> Float[Tensor, "b 1"]:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
