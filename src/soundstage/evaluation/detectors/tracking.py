"""Follow the one moving object: which pixels it covers in each frame, and from those its place and extent.

Every pixel is explained in two ways, by the still background (perhaps in shadow) and by the object's colour
(lighter or darker); the coverage is how much better the second does. No model, no training: only the
world's palette is known.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from soundstage.data.world.scene import COLOURS, FLOOR_TOP
from soundstage.evaluation.observation import Observation, Pictures

LIGHT = (0.45, 1.15)  # how dark and how bright an object's colour is drawn
SHADE = 0.58  # how much light a shadow takes at most
NOISE = 12.0  # 8-bit steps of difference that say nothing yet
DARKNESS = 0.15  # how unlikely dark shades of the object's colour are, as a share of its length
FLOOR_BIAS = 0.15  # coverage that is taken for noise
MIN_AREA = 0.006  # of the picture height squared: a third of the smallest ball
SEARCH_RADIUS = 0.26  # picture heights; the largest object reaches 0.24 from its centre

Still = Float[Tensor, "height width 3"]
Coverage = Float[Tensor, "frames height width"]  # 0 = background, 1 = object
PerFrame = Float[Tensor, " frames"]


@dataclass(frozen=True, kw_only=True)
class Track:
    """An object through a clip; lengths in picture heights, y downwards."""

    x: PerFrame  # of the centre of the area
    y: PerFrame  # of the centre of the area
    foot: PerFrame  # y of the lowest point
    area: PerFrame  # heights squared
    visible: Bool[Tensor, " frames"]
    colour: Float[Tensor, "3"]  # RGB in [0, 255] of its middle
    coverage: Coverage
    background: Still


def track_object(seen: Observation) -> Track:
    """Find the object in every frame."""
    pictures = seen.pictures
    height = pictures.shape[1]
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    background = pictures.median(0).values
    colour = palette[_moving_colour(pictures, background, palette)]
    for _ in range(2):  # the colour gives the background, the background the colour
        background = _still_background(pictures, colour)
        coverage = _coverage(pictures, background, colour)
        colour = _core_colour(pictures, coverage, colour)
    coverage = _coverage(pictures, background, colour)
    coverage = coverage * _near_centre(coverage)
    return _measure(coverage, colour, background, height)


def _distance_to_colour(
    pictures: Float[Tensor, "*rest 3"], colour: Float[Tensor, "3"]
) -> Float[Tensor, "*rest"]:
    """Distance to the object's colour in its best light, in 8-bit steps.

    Dark light costs something: a grey floor is white in the dark, and yet no part of a white object.
    """
    light: Tensor = ((pictures @ colour) / colour.square().sum()).clamp(*LIGHT)
    darkness: Tensor = (0.85 - light).clamp_min(0) * colour.norm()
    distance: Tensor = (pictures - light[..., None] * colour).norm(dim=-1)
    return distance.add_(darkness, alpha=DARKNESS)


def _distance_to_still(pictures: Pictures, background: Still) -> Coverage:
    """Distance to the background; on and near the floor a shadow may lie on it."""
    light = (pictures * background).sum(-1) / background.square().sum(-1).clamp_min(1)
    rows = torch.arange(pictures.shape[1]) >= (FLOOR_TOP - 0.02) * pictures.shape[1]
    least = torch.where(rows, 1 - SHADE, 1.0)[:, None]
    light = torch.maximum(light, least).clamp(max=1)
    distance: Tensor = (pictures - light[..., None] * background).norm(dim=-1)
    return distance


def _moving_colour(pictures: Pictures, background: Still, palette: Float[Tensor, "n 3"]) -> int:
    """Vote for the colour of what differs from the usual picture."""
    change = _distance_to_still(pictures, background)
    moving = change > 5 * NOISE
    pixels, weight = pictures[moving], change[moving]
    distance = torch.stack([_distance_to_colour(pixels, colour) for colour in palette])  # (colours, pixels)
    nearest = distance.min(0)
    weight = weight * torch.exp(-nearest.values / (3 * NOISE))
    votes = torch.zeros(len(palette)).index_add_(0, nearest.indices, weight)
    return int(votes.argmax())


def _still_background(pictures: Pictures, colour: Float[Tensor, "3"]) -> Still:
    """Take the usual picture without the frames in which the object may cover a pixel.

    An object at rest covers a place most of the time, so a plain median would show it.
    """
    covered = _distance_to_colour(pictures, colour) < 6 * NOISE
    enough = (~covered).float().mean(0) >= 0.08
    hidden = pictures.masked_fill(covered[..., None], math.nan).nanmedian(0).values
    return torch.where(enough[..., None], hidden, pictures.median(0).values)


def _coverage(pictures: Pictures, background: Still, colour: Float[Tensor, "3"]) -> Coverage:
    still = _distance_to_still(pictures, background)
    coloured = _distance_to_colour(pictures, colour)
    share = still / (still + coloured + NOISE)
    return ((share - FLOOR_BIAS) / (0.85 - FLOOR_BIAS)).clamp(0, 1)


def _core_colour(pictures: Pictures, coverage: Coverage, colour: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    """Take the median colour of the surely covered pixels, or keep the guess where there are few."""
    core = pictures[coverage > 0.9]
    return core.median(0).values if len(core) > 2 * len(pictures) else colour


def _near_centre(coverage: Coverage) -> Coverage:
    """Keep one disc of each frame: the one that moves to the centre of what it contains."""
    _, height, width = coverage.shape
    radius = SEARCH_RADIUS * height
    window = 2 * round(0.15 * height) + 1
    density = F.avg_pool2d(coverage[:, None], window, stride=1, padding=window // 2)[:, 0]
    place = density.flatten(1).argmax(1)
    rows = torch.arange(height, dtype=torch.float32)[:, None]
    columns = torch.arange(width, dtype=torch.float32)
    centre_y, centre_x = (place // width).float(), (place % width).float()
    for _ in range(4):
        offset_y, offset_x = rows - centre_y[:, None, None], columns - centre_x[:, None, None]
        disc = (radius + 0.5 - torch.sqrt(offset_x**2 + offset_y**2)).clamp(0, 1)
        weight = coverage * disc
        total = weight.sum((1, 2)).clamp_min(1e-6)
        centre_y = (weight * rows).sum((1, 2)) / total
        centre_x = (weight * columns).sum((1, 2)) / total
    return disc


def _measure(coverage: Coverage, colour: Float[Tensor, "3"], background: Still, height: int) -> Track:
    """Place and extent by moments, which are smooth in the motion where an outline jumps by pixels."""
    rows = (torch.arange(height, dtype=torch.float32) + 0.5)[:, None] / height
    columns = (torch.arange(coverage.shape[2], dtype=torch.float32) + 0.5) / height
    area = coverage.sum((1, 2)) / height**2
    total = (area * height**2).clamp_min(1e-6)
    x, y = (coverage * columns).sum((1, 2)) / total, (coverage * rows).sum((1, 2)) / total
    return Track(
        x=x,
        y=y,
        foot=_lowest(coverage, y),
        area=area,
        visible=area > MIN_AREA,
        colour=colour,
        coverage=coverage,
        background=background,
    )


def _lowest(coverage: Coverage, centre: PerFrame) -> PerFrame:
    """Estimate the lowest point as the centre plus a fixed number of vertical deviations.

    How many is the same in all frames of a clip, whatever the shape: it is the median of where the outline
    ends. So the estimate follows the squash, and is as smooth as the moments.
    """
    _, height, _ = coverage.shape
    rows = (torch.arange(height, dtype=torch.float32) + 0.5) / height
    profile = coverage.sum(2)
    total = profile.sum(1).clamp_min(1e-6)
    deviation = ((profile * (rows - centre[:, None]) ** 2).sum(1) / total).sqrt().clamp_min(1e-4)
    below = profile.flip(1).cumsum(1).flip(1) / total[:, None]  # share of the area at or below each row
    edge = (below > 0.02).sum(1) / height
    reach = ((edge - centre) / deviation).median()
    return centre + reach * deviation
