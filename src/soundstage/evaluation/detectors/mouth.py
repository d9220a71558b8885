"""Find the mouth of a talking face in the picture, and how far it is open in every frame.

Nothing in a face moves as much as its mouth, which tells where it is. Skin beside it tells what is not mouth;
the height of all that differs from skin, lips included, grows exactly as the mouth opens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.data.world.face import EDGE, FACE_COLOURS
from soundstage.evaluation.observation import Observation

ROWS = 64  # to which every picture is brought
BAND = (0.58, 0.90)  # picture heights from the top within which mouths lie; eyes, which blink, are above
REACH_UP, REACH_DOWN = 0.09, 0.15  # picture heights around the middle of what moves
REACH_ASIDE = 0.03  # to each side of it; there a mouth is open if it is open at all
CHEEK = (0.155, 0.185)  # picture heights aside of the middle, where there is skin only
SKIN, OTHER = 40.0, 110.0  # distances of colour: light and shade of one skin, and what is surely not skin
LIGHT = (0.6, 1.1)  # factors on a colour that a face may be seen in
STILL = 2.0  # grey levels of movement below which no mouth has moved

Planes = Float[Tensor, "frames 3 height _"]


@dataclass(frozen=True, kw_only=True)
class Mouth:
    """A mouth over time."""

    x: float  # picture heights from the left edge
    y: float  # picture heights from the top
    skin: tuple[float, float, float]  # RGB in [0, 255], beside it
    openings: tuple[float, ...]  # picture heights from where it is least open, one for each frame


def find_mouth(seen: Observation) -> Mouth | None:
    """Follow the mouth; None where nothing moves that could be one."""
    pictures = seen.pictures.permute(0, 3, 1, 2)
    width = max(round(ROWS * pictures.shape[3] / pictures.shape[2]), 1)
    small = F.interpolate(pictures, (ROWS, width), mode="area")
    place = _place(small)
    if place is None:
        return None
    x, y = place
    skin = _skin(small, x, y)
    red, green, blue = skin.tolist()
    openings = tuple(_openings(small, skin, x, y).tolist())
    return Mouth(x=x / ROWS, y=y / ROWS, skin=(red, green, blue), openings=openings)


def find_face_colour(seen: Observation) -> str | None:
    """Name the colour of the face, the nearest in any light; None where no mouth moves."""
    mouth = seen.find(find_mouth)
    if mouth is None:
        return None
    skin = torch.tensor(mouth.skin)

    def distance(name: str) -> float:
        colour = torch.tensor(FACE_COLOURS[name], dtype=torch.float32)
        light = float((skin * colour).sum() / colour.square().sum())
        return float((skin - colour * min(max(light, LIGHT[0]), LIGHT[1])).square().sum())

    return min(FACE_COLOURS, key=distance)


def find_face_place(seen: Observation) -> str | None:
    """Say at which side the face is: left, middle or right; None where no mouth moves."""
    mouth = seen.find(find_mouth)
    if mouth is None:
        return None
    _, height, width, _ = seen.pictures.shape
    aspect = width / height
    places = {"left": EDGE, "middle": aspect / 2, "right": aspect - EDGE}
    return min(places, key=lambda place: abs(places[place] - mouth.x))


def _place(pictures: Planes) -> tuple[float, float] | None:
    """Middle of what changes most over time, in pixels."""
    top, bottom = (round(edge * ROWS) for edge in BAND)
    change = pictures[:, :, top:bottom].std(0).mean(0)  # (rows, width)
    smooth = F.avg_pool2d(change[None], 5, 1, 2, count_include_pad=False)[0]
    if float(smooth.max()) < STILL:
        return None
    row, column = divmod(int(smooth.argmax()), smooth.shape[1])
    rows = torch.arange(smooth.shape[0])[:, None]
    columns = torch.arange(smooth.shape[1])
    near = ((rows - row).abs() <= 0.12 * ROWS) & ((columns - column).abs() <= 0.16 * ROWS)
    weight = (smooth - 0.25 * smooth.max()).clamp_min(0) * near
    weight = weight / weight.sum()
    return float((weight * columns).sum()) + 0.5, float((weight * rows).sum()) + 0.5 + top


def _openings(pictures: Planes, skin: Float[Tensor, " 3"], x: float, y: float) -> Float[Tensor, " frames"]:
    """Height of what is not skin in the middle of the mouth, in picture heights, beyond its least.

    The share of what is not skin is summed, not counted: a blurred mouth is as large as a sharp one.
    """
    rows = slice(max(round(y - REACH_UP * ROWS), 0), round(y + REACH_DOWN * ROWS) + 1)
    middle = _columns(pictures, x - REACH_ASIDE * ROWS, x + REACH_ASIDE * ROWS)[:, :, rows]
    distance = (middle - skin[:, None, None]).square().sum(1).sqrt()
    heights = ((distance - SKIN) / (OTHER - SKIN)).clamp(0, 1).sum(1).mean(1) / ROWS
    return heights - heights.min()


def _skin(pictures: Planes, x: float, y: float) -> Float[Tensor, " 3"]:
    """Colour beside the mouth."""
    rows = slice(max(round(y - 0.04 * ROWS), 0), round(y + 0.04 * ROWS) + 1)
    sides = [
        _columns(pictures, x + first * ROWS, x + last * ROWS)
        for first, last in (CHEEK, (-CHEEK[1], -CHEEK[0]))
    ]
    cheeks = torch.cat([side[:, :, rows].permute(1, 0, 2, 3).flatten(1) for side in sides], 1)
    return cheeks.median(1).values


def _columns(pictures: Planes, first: float, last: float) -> Planes:
    """Columns between two places, at least one."""
    left = min(max(round(first - 0.5), 0), pictures.shape[-1] - 1)
    return pictures[..., left : max(round(last - 0.5), left) + 1]
