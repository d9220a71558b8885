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

from soundstage.data.world.bounce import FLOOR_TOP
from soundstage.data.world.kind import COLOURS
from soundstage.evaluation.observation import Observation, Pictures

LIGHT = (0.45, 1.15)  # how dark and how bright an object's colour is drawn
SHADE = 0.58  # how much light a shadow takes at most
NOISE = 12.0  # 8-bit steps of difference that say nothing yet
DARKNESS = 0.15  # how unlikely dark shades of the object's colour are, as a share of its length
FLOOR_BIAS = 0.15  # coverage that is taken for noise
NUM_CANDIDATES, SAMPLE_EVERY = 3, 2  # colours that are tried, on every such frame
MARGINS, LEAST_SHARE = (0, 1, 2), 0.08  # frames left out beside a covered one; share that must remain
MIN_AREA = 0.006  # of the picture height squared: a third of the smallest ball
SEARCH_RADIUS = 0.26  # picture heights; the largest object reaches 0.24 from its centre

Colour = Float[Tensor, "3"]  # RGB in [0, 255]
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
    colour: Colour  # of its middle
    coverage: Coverage
    background: Still


def track_object(seen: Observation) -> Track:
    """Find the object in every frame."""
    pictures = seen.pictures
    start = _likely_colour(pictures)
    background = still_background(pictures, start)
    colour = core_colour(pictures, coverage_of(pictures, background, start), start)
    background = still_background(pictures, colour)  # the colour gives the background, and that the object
    coverage = coverage_of(pictures, background, colour)
    return measure_track(coverage * near_centre(coverage), colour, background, pictures.shape[1])


def distance_to_colour(pictures: Float[Tensor, "*rest 3"], colour: Colour) -> Float[Tensor, "*rest"]:
    """Distance to the object's colour in its best light, in 8-bit steps.

    Dark light costs something: a grey floor is white in the dark, and yet no part of a white object.
    """
    light: Tensor = ((pictures @ colour) / colour.square().sum()).clamp(*LIGHT)
    darkness: Tensor = (0.85 - light).clamp_min(0) * colour.norm()
    distance: Tensor = (pictures - light[..., None] * colour).norm(dim=-1)
    return distance.add_(darkness, alpha=DARKNESS)


def distance_to_still(pictures: Pictures, background: Still) -> Coverage:
    """Distance to the background; on and near the floor a shadow may lie on it."""
    light = (pictures * background).sum(-1) / background.square().sum(-1).clamp_min(1)
    rows = torch.arange(pictures.shape[1]) >= (FLOOR_TOP - 0.02) * pictures.shape[1]
    least = torch.where(rows, 1 - SHADE, 1.0)[:, None]
    light = torch.maximum(light, least).clamp(max=1)
    distance: Tensor = (pictures - light[..., None] * background).norm(dim=-1)
    return distance


def _likely_colour(pictures: Pictures) -> Colour:
    """Choose the palette's colour with which a still background explains the clip best.

    What differs from the median picture votes first. That is not enough: where an object rests, the median
    shows it, and the floor seems to move.
    """
    sample = pictures[::SAMPLE_EVERY]
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    candidates = palette[colour_votes(sample, palette).topk(NUM_CANDIDATES).indices]
    unexplained = []
    for colour in candidates:
        still = distance_to_still(sample, still_background(sample, colour))
        unexplained.append(torch.minimum(still, distance_to_colour(sample, colour)).mean())
    return candidates[int(torch.stack(unexplained).argmin())]


def colour_votes(
    pictures: Pictures,
    palette: Float[Tensor, "n 3"],
    where: Bool[Tensor, "frames height width"] | None = None,
) -> Float[Tensor, " n"]:
    """Let every pixel that differs from the median picture vote for the colour nearest to it.

    Args:
        where: Which pixels may vote; all when absent.
    """
    change = distance_to_still(pictures, pictures.median(0).values)
    moving = change > 5 * NOISE
    if where is not None:
        moving = moving & where
    pixels, weight = pictures[moving], change[moving]
    distance = torch.stack([distance_to_colour(pixels, colour) for colour in palette])  # (colours, pixels)
    nearest = distance.min(0)
    weight = weight * torch.exp(-nearest.values / (3 * NOISE))
    return torch.zeros(len(palette)).index_add_(0, nearest.indices, weight)


def still_background(pictures: Pictures, *colours: Colour) -> Still:
    """Take the usual picture without the frames in which an object may cover a pixel, or just did.

    An object at rest covers a place most of the time, so a plain median would show it; a blurred clip
    mixes object and background in the frames around.
    """
    nearest = torch.stack([distance_to_colour(pictures, colour) for colour in colours]).amin(0)
    covered = (nearest < 6 * NOISE).float()
    background = pictures.median(0).values
    for margin in MARGINS:
        around = F.max_pool3d(covered[None], (2 * margin + 1, 1, 1), 1, (margin, 0, 0))[0] > 0.5
        enough = (~around).float().mean(0) >= LEAST_SHARE
        free = pictures.masked_fill(around[..., None], math.nan).nanmedian(0).values
        background = torch.where(enough[..., None], free, background)
    return background


def coverage_of(pictures: Pictures, background: Still, colour: Colour) -> Coverage:
    """Say how much better each pixel is explained by the object than by the background."""
    still = distance_to_still(pictures, background)
    coloured = distance_to_colour(pictures, colour)
    share = still / (still + coloured + NOISE)
    return ((share - FLOOR_BIAS) / (0.85 - FLOOR_BIAS)).clamp(0, 1)


def core_colour(pictures: Pictures, coverage: Coverage, colour: Colour) -> Colour:
    """Take the median colour of the surely covered pixels, or keep the guess where it would leave it."""
    core = pictures[coverage > 0.9]
    if len(core) <= 2 * len(pictures):
        return colour
    median: Tensor = core.median(0).values
    return median if float(distance_to_colour(median, colour)) < 4 * NOISE else colour


def near_centre(coverage: Coverage) -> Coverage:
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


def measure_track(coverage: Coverage, colour: Colour, background: Still, height: int) -> Track:
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
