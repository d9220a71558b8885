"""Outlines as signed distances: negative inside, in radii, so that any size has smooth edges.

All are symmetric left to right. The lowest point of each lies where `bounce.SHAPES` says.
Source of the constructions: Inigo Quilez, "2D distance functions".
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from soundstage.data.world.bounce import SHAPES

RING_WIDTH = 0.44  # radii
STAR_WAIST = 0.5  # radius of the inner corners over that of the tips


def ball(x: Tensor, y: Tensor) -> Tensor:
    """Disc of radius 1."""
    return torch.sqrt(x * x + y * y) - 1


def ring(x: Tensor, y: Tensor) -> Tensor:
    """Disc with a hole through which the background shows."""
    half = RING_WIDTH / 2
    return (torch.sqrt(x * x + y * y) - (1 - half)).abs() - half


def cube(x: Tensor, y: Tensor) -> Tensor:
    """Upright square."""
    half = SHAPES["cube"]
    return torch.maximum(x.abs(), y.abs()) - half


def pyramid(x: Tensor, y: Tensor) -> Tensor:
    """Triangle on its base, tip up: half as wide as high, and a bit."""
    base, tip, half_width = SHAPES["pyramid"], -1.0, 1.0
    slope = math.hypot(base - tip, half_width)
    side = ((base - tip) * x.abs() - half_width * (y - tip)) / slope
    return torch.maximum(side, y - base)


def star(x: Tensor, y: Tensor) -> Tensor:
    """Star of five points, one up, standing on two.

    By symmetry every point folds into one sector of 36 degrees, in which the outline is one straight edge
    from a tip to the inner corner beside it.
    """
    lift = SHAPES["star"] / math.cos(math.pi / 5)  # tip radius that puts the lowest tips on the ground
    angle = torch.atan2(x, -y)  # 0 at the upward tip
    sector = 2 * math.pi / 5
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    radius = torch.sqrt(x * x + y * y)
    along, across = radius * torch.cos(folded), radius * torch.sin(folded)  # the tip lies at (lift, 0)
    corner_x = STAR_WAIST * lift * math.cos(sector / 2)
    corner_y = STAR_WAIST * lift * math.sin(sector / 2)
    edge_x, edge_y = corner_x - lift, corner_y
    return (edge_y * (along - lift) - edge_x * across) / math.hypot(edge_x, edge_y)


SHAPE_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ball": ball,
    "cube": cube,
    "pyramid": pyramid,
    "star": star,
    "ring": ring,
}
