"""Draw objects, with walls where there are some, and a stripe on what rolls."""

from collections.abc import Sequence
from fractions import Fraction

import torch

from soundstage.core.types import VideoPixels
from soundstage.data.world.backdrop import Grid
from soundstage.data.world.bounce import FLOOR_TOP
from soundstage.data.world.bounce_picture import Thing, paint_things, poses_of, render_stages
from soundstage.data.world.objects import WALL, Objects

WALL_COLOUR, JOINT_COLOUR = (164, 84, 62), (96, 52, 44)
WALL_FOOT = FLOOR_TOP + 0.12  # y where a wall stands on the floor
NUM_COURSES = 8  # of bricks


def render_objects(
    scenes: Sequence[Objects],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str = "cpu",
) -> VideoPixels:
    """Draw each scene as a clip; frame k shows time k / frame_rate."""
    pixels = render_stages(
        scenes, num_frames=num_frames, height=height, width=width, frame_rate=frame_rate, device=device
    )
    for row, scene in enumerate(scenes):
        _paint_walls(pixels[row : row + 1], scene)
    times = [frame / float(frame_rate) for frame in range(num_frames)]
    for layer in range(max(len(scene.bodies) for scene in scenes)):
        rows = [row for row, scene in enumerate(scenes) if len(scene.bodies) > layer]
        bodies = [scenes[row].bodies[layer] for row in rows]
        poses = poses_of([(body, scenes[row].camera) for row, body in zip(rows, bodies, strict=True)], times)
        things = [
            Thing(body.colour, body.shape, body.radius, body.foot, rolls=body.bounce is None)
            for body in bodies
        ]
        paint_things(pixels, poses.to(pixels.device), things, rows)
    return pixels


def _paint_walls(pixels: VideoPixels, scene: Objects) -> None:
    """Draw courses of bricks at the edges that have a wall."""
    height, width = pixels.shape[-2:]
    grid = Grid.of(height, width, pixels.device)
    course = (grid.y / WALL_FOOT * NUM_COURSES).frac()
    is_joint = ((course - 0.5).abs() > 0.40).float()
    for side in scene.walls:
        inward = grid.x if side == "left" else width / height - grid.x
        cover = ((WALL - inward) * height + 0.5).clamp(0, 1) * ((WALL_FOOT - grid.y) * height + 0.5).clamp(
            0, 1
        )
        edge = ((inward - WALL + 0.022) * height + 0.5).clamp(0, 1)
        dark = torch.maximum(is_joint, edge * 0.8)  # (rows, width)
        brick, joint = (
            torch.tensor(rgb, device=pixels.device)[:, None, None] / 127.5 - 1
            for rgb in (WALL_COLOUR, JOINT_COLOUR)
        )
        wall = torch.lerp(brick.expand(3, height, width), joint.expand(3, height, width), dark)
        pixels.lerp_(wall[None, :, None].expand_as(pixels), cover.expand_as(pixels))
