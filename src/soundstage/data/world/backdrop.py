"""Draw the still part of scenes: a background with few features, and a floor that shows its material."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.data.world.bounce import FLOOR_TOP
from soundstage.data.world.camera import Camera

Pictures = Float[Tensor, "b 3 height width"]  # RGB in [0, 1]
Scalars = Float[Tensor, "b 1 1"]


@runtime_checkable
class Background(Protocol):
    """What is behind everything."""

    @property
    def background(self) -> str:
        """Key of `SKIES`."""

    @property
    def aspect(self) -> float:
        """Picture width over height."""

    @property
    def camera(self) -> Camera:
        """How it is filmed."""

    @property
    def tint(self) -> tuple[float, float, float]:
        """What is added to its RGB in [0, 1]."""

    @property
    def texture(self) -> float:
        """In [0, 1); shifts planks, clouds and highlights."""


@runtime_checkable
class Stage(Background, Protocol):
    """What of a scene stands still: background and floor."""

    @property
    def floor(self) -> str:
        """Key of `FLOOR_DRAWERS`."""

    @property
    def shade(self) -> float:
        """Factor on the floor's brightness."""

    @property
    def flipped(self) -> bool:
        """Whether it is drawn mirrored."""


class Grid(NamedTuple):
    """Pixel centres in picture heights."""

    x: Float[Tensor, " width"]
    y: Float[Tensor, "height 1"]

    @classmethod
    def of(cls, height: int, width: int, device: torch.device) -> "Grid":
        """Make the grid of a picture size."""
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / height
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        return cls(x, y[:, None])


SKIES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "sky": ((132, 176, 214), (206, 222, 232)),
    "dusk": ((74, 58, 98), (204, 142, 116)),
    "night": ((12, 14, 34), (40, 44, 76)),
    "wall": ((206, 190, 164), (184, 166, 140)),
    "studio": ((96, 98, 104), (170, 172, 176)),
    "mint": ((176, 204, 184), (146, 178, 158)),
}
"""Upper and lower colour of each background, muted so that no object blends in."""


class Spot(NamedTuple):
    """Something soft and bright in the background; lengths in picture heights, but x in picture widths."""

    x: float
    y: float
    wide: float
    high: float
    colour: tuple[int, int, int]
    strength: float


CLOUD, STAR = (246, 248, 250), (236, 236, 220)
SPOTS: dict[str, tuple[Spot, ...]] = {
    "sky": (
        Spot(0.10, 0.16, 0.160, 0.050, CLOUD, 0.7),
        Spot(0.22, 0.20, 0.120, 0.040, CLOUD, 0.6),
        Spot(0.62, 0.34, 0.140, 0.040, CLOUD, 0.5),
    ),
    "dusk": (Spot(0.40, 0.74, 0.340, 0.160, (250, 196, 130), 0.8),),
    "night": (
        Spot(0.05, 0.10, 0.016, 0.016, STAR, 0.8),
        Spot(0.31, 0.28, 0.013, 0.013, STAR, 0.7),
        Spot(0.48, 0.07, 0.013, 0.013, STAR, 0.7),
        Spot(0.66, 0.40, 0.013, 0.013, STAR, 0.6),
        Spot(0.84, 0.19, 0.016, 0.016, STAR, 0.8),
    ),
    "wall": (Spot(0.50, 0.30, 0.450, 0.300, (226, 214, 192), 0.6),),
}
"""What else a background shows; the scene's texture shifts it sideways."""


def draw_backdrop(scenes: Sequence[Stage], *, height: int, width: int, device: torch.device) -> Pictures:
    """Draw background and floor of each scene, for moving cameras all of the world at `width` pixels."""
    grid = Grid.of(height, width, device)
    pictures = draw_backgrounds(scenes, grid)
    top = round(FLOOR_TOP * height)
    lower = Grid(grid.x, grid.y[top:])
    for floor, draw in FLOOR_DRAWERS.items():
        rows = [row for row, scene in enumerate(scenes) if scene.floor == floor]
        if rows:
            texture = _scalars([scenes[row].texture for row in rows], device)
            shade = _scalars([scenes[row].shade for row in rows], device)[:, None]
            pictures[rows, :, top:] = draw(pictures[rows, :, top:], lower, texture).mul_(shade)
    flipped = [row for row, scene in enumerate(scenes) if scene.flipped]
    if flipped:
        pictures[flipped] = pictures[flipped].flip(-1)
    return pictures.clamp_(0, 1)


def draw_backgrounds(scenes: Sequence[Background], grid: Grid) -> Pictures:
    """Draw what is behind everything, unmirrored."""
    device = grid.x.device
    ends = torch.tensor([SKIES[scene.background] for scene in scenes], dtype=torch.float32) / 255
    tint = torch.tensor([scene.tint for scene in scenes], dtype=torch.float32)
    upper, lower = (ends + tint[:, None]).to(device)[..., None, None].unbind(1)  # (b, 3, 1, 1) each
    pictures = torch.lerp(upper, lower, (grid.y / FLOOR_TOP).clamp(max=1)).repeat(1, 1, 1, len(grid.x))
    for picture, scene in zip(pictures, scenes, strict=True):
        for spot in SPOTS.get(scene.background, ()):
            x = (spot.x + scene.texture) % 1.0 * (scene.aspect + scene.camera.extent)
            glow = torch.exp(-(((grid.x - x) / spot.wide) ** 2) - ((grid.y - spot.y) / spot.high) ** 2)
            colour = _rgb(*spot.colour, picture)
            picture.lerp_(colour.expand_as(picture), (glow * spot.strength).expand_as(picture))
    return pictures


def _scalars(values: list[float], device: torch.device) -> Scalars:
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def _rgb(red: int, green: int, blue: int, like: Tensor) -> Float[Tensor, "3 1 1"]:
    return torch.tensor((red, green, blue), dtype=like.dtype, device=like.device)[:, None, None] / 255


def _depth(grid: Grid) -> Float[Tensor, "rows 1"]:
    """0 where the floor begins, 1 at the lower edge of the picture."""
    return ((grid.y - FLOOR_TOP) / (1 - FLOOR_TOP)).clamp(0, 1)


def _soft(distance: Tensor, width: float) -> Tensor:
    """1 on a line, falling to 0 at `width` from it."""
    return (1 - (distance / width).abs()).clamp_min(0)


def wood(behind: Pictures, grid: Grid, texture: Scalars) -> Pictures:
    """Brown planks that run to the viewer, each of its own tone, with dark gaps."""
    depth = _depth(grid)
    middle = grid.x.mean()
    across = (grid.x - middle) / (0.62 + 0.5 * depth) * 6 + texture * 6  # plank number
    plank = torch.floor(across)
    tone = 0.92 + 0.16 * torch.frac(torch.sin(plank * 12.9898) * 43758.547).abs()
    gap = _soft((across - plank - 0.5).abs() - 0.5, 0.16)
    edge = _soft(depth, 0.14)
    brown = _rgb(166, 104, 54, behind) * (tone * (1 - 0.6 * gap) * (0.86 + 0.2 * depth))[:, None]
    return brown + 0.12 * edge


def metal(behind: Pictures, grid: Grid, texture: Scalars) -> Pictures:
    """Grey sheet, brushed sideways, with a bright reflection and a row of bolts along the front."""
    depth = _depth(grid)
    brushed = 0.06 * torch.sin(depth * 47 + texture * 6) * torch.sin(depth * 29 + 1)
    band = 0.5 * _soft(depth - 0.16, 0.16)
    sheen = 0.14 * torch.cos((grid.x * 1.3 + depth * 0.6 + texture) * 2 * math.pi)
    grey = _rgb(122, 128, 138, behind) * (1 + brushed + sheen)[:, None] + band * 0.8
    spacing = 0.18
    along = torch.remainder(grid.x + texture * spacing, spacing) - spacing / 2
    bolt = torch.sqrt(along**2 + (grid.y - 0.955) ** 2)
    return grey * (1 - 0.55 * _soft(bolt, 0.035))[:, None] * (1 - 0.45 * _soft(depth - 1, 0.12))


def glass(behind: Pictures, grid: Grid, texture: Scalars) -> Pictures:
    """Pale clear sheet: the background shines through, white streaks, a green-blue front edge."""
    depth = _depth(grid)
    through = behind.mean(dim=(-2, -1), keepdim=True)
    pale = torch.lerp(through.expand_as(behind), _rgb(196, 236, 240, behind).expand_as(behind), 0.7)
    slant = torch.remainder((grid.x + depth * 0.22 + texture) * 2.2, 1.0)
    streak = 0.5 * _soft(slant - 0.35, 0.10) + 0.35 * _soft(slant - 0.58, 0.05)
    pale = pale + (streak * (depth < 0.76))[:, None] + 0.25 * _soft(depth, 0.16)
    front = ((depth - 0.74) * 16).clamp(0, 1)
    return torch.lerp(pale, (_rgb(64, 168, 168, behind) * (1.25 - 0.5 * depth)).expand_as(pale), front)


def drum(behind: Pictures, grid: Grid, texture: Scalars) -> Pictures:
    """Cream skin with a curved front, a white hoop, a dark red shell with gold rods."""
    depth = _depth(grid)
    middle = grid.x.mean()
    aside = (grid.x - middle) / (middle + 1e-6)
    rim = 0.60 - 0.16 * aside**2  # (width,) depth of the hoop's upper edge
    skin = (
        _rgb(232, 214, 176, behind) * (0.9 + 0.1 * _soft(aside, 1.1) + 0.06 * torch.sin(texture * 6))[:, None]
    )
    hoop = _rgb(250, 250, 246, behind)
    rods = _soft(torch.remainder(grid.x + texture * 0.25, 0.25) - 0.125, 0.035)
    shell = torch.lerp(
        _rgb(146, 18, 36, behind).expand_as(behind),
        _rgb(226, 178, 70, behind).expand_as(behind),
        rods[:, None].expand_as(behind),
    )
    below_skin = ((depth - rim) * 20).clamp(0, 1)
    below_hoop = ((depth - rim - 0.15) * 20).clamp(0, 1)
    picture = torch.lerp(skin.expand_as(behind), hoop.expand_as(behind), below_skin)
    return torch.lerp(picture, shell, below_hoop)


FLOOR_DRAWERS: dict[str, Callable[[Tensor, Grid, Tensor], Tensor]] = {
    "wood": wood,
    "metal": metal,
    "glass": glass,
    "drum": drum,
}
