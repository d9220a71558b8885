"""Name the object's colour, shape and size from its average outline in the air.

The outline is compared with drawings of every shape at every radius; a blurred clip is compared with
blurred drawings, so that softness is not taken for roundness.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.data.world.bounce import SIZES
from soundstage.data.world.kind import COLOURS
from soundstage.data.world.shapes import SHAPE_DISTANCES
from soundstage.evaluation.detectors.tracking import LIGHT, Track, track_object
from soundstage.evaluation.observation import Observation

SIDE = 48  # cells of the patch, each way
EXTENT = 0.52  # picture heights that the patch covers
IN_AIR = 0.08  # picture heights above the lowest place: no squash, no shadow
SHARPEST = 0.4  # share of those frames that is used: a generated clip may smear fast motion
FEW = 4  # frames in the air below which all frames are used
RADII = tuple(0.10 * 1.05**step for step in range(20))  # picture heights, 0.10 to 0.25
SOFTNESS = (0.016, 0.032, 0.064)  # picture heights over which an edge fades

Patch = Float[Tensor, "side side"]


class Outline(NamedTuple):
    """Shape and radius that explain an outline best."""

    shape: str
    radius: float  # picture heights
    likeness: float  # correlation with the drawing, at most 1


class _Drawings(NamedTuple):
    """All drawings with what they show."""

    patches: Float[Tensor, "n cells"]
    shapes: tuple[str, ...]
    radii: tuple[float, ...]


def find_colour(seen: Observation) -> str | None:
    """Name the palette's colour that is nearest to the object's middle in its best light."""
    track = seen.find(track_object)
    if not bool(track.visible.any()):
        return None
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    light = ((palette @ track.colour) / palette.square().sum(1)).clamp(*LIGHT)
    distance = (track.colour - light[:, None] * palette).norm(dim=1)
    return list(COLOURS)[int(distance.argmin())]


def find_outline(seen: Observation) -> Outline | None:
    """Fit the drawings to the object's average outline; None where no object is seen."""
    patch = _average_patch(seen.find(track_object))
    if patch is None:
        return None
    drawings = _drawings()
    likeness = drawings.patches @ F.normalize(patch.flatten(), dim=0)
    best = int(likeness.argmax())
    return Outline(drawings.shapes[best], drawings.radii[best], float(likeness[best]))


def find_shape(seen: Observation) -> str | None:
    """Name the object's shape."""
    outline = seen.find(find_outline)
    return None if outline is None else outline.shape


def find_size(seen: Observation) -> str | None:
    """Name the object's size, the nearest in proportion."""
    outline = seen.find(find_outline)
    if outline is None:
        return None
    radius = outline.radius
    return min(SIZES, key=lambda size: max(SIZES[size] / radius, radius / SIZES[size]))


def _average_patch(track: Track) -> Patch | None:
    """Centre the object in every frame in which it flies, and take the mean."""
    if not bool(track.visible.any()):
        return None
    lowest = track.foot[track.visible].max()
    chosen = track.visible & (track.foot < lowest - IN_AIR)
    if int(chosen.sum()) < FEW:
        chosen = track.visible
    sharpness = track.coverage.square().sum((1, 2)) / track.coverage.sum((1, 2)).clamp_min(1e-6)
    count = max(int(chosen.sum() * SHARPEST), 1)
    best = sharpness.masked_fill(~chosen, -1).topk(count).indices
    coverage = track.coverage[best]
    height, width = coverage.shape[1:]
    cells = _cells()
    x = (track.x[best, None] + cells) * height / width * 2 - 1  # -1 and 1 are the picture's edges
    y = (track.y[best, None] + cells) * 2 - 1
    grid = torch.stack((x[:, None, :].expand(-1, SIDE, -1), y[:, :, None].expand(-1, -1, SIDE)), dim=-1)
    return F.grid_sample(coverage[:, None], grid, align_corners=False).mean((0, 1))


def _cells() -> Float[Tensor, " side"]:
    """Cell centres in picture heights from the patch's centre."""
    return ((torch.arange(SIDE, dtype=torch.float32) + 0.5) / SIDE - 0.5) * EXTENT


@cache
def _drawings() -> _Drawings:
    """Draw every shape at every radius and softness, its centre of area in the middle."""
    cells = _cells()
    patches, shapes, radii = [], [], []
    for shape, distance in SHAPE_DISTANCES.items():
        centre = _centre_of_area(shape)
        for radius in RADII:
            outline = distance(cells[None, :] / radius, cells[:, None] / radius + centre) * radius
            for softness in SOFTNESS:
                patches.append((0.5 - outline / softness).clamp(0, 1).flatten())
                shapes.append(shape)
                radii.append(radius)
    return _Drawings(F.normalize(torch.stack(patches), dim=1), tuple(shapes), tuple(radii))


def _centre_of_area(shape: str) -> float:
    """How far below its drawn centre a shape's centre of area lies, in radii."""
    axis = torch.linspace(-1.3, 1.3, 261)
    inside = (SHAPE_DISTANCES[shape](axis[None, :], axis[:, None]) < 0).float()
    return float((inside * axis[:, None]).sum() / inside.sum())
