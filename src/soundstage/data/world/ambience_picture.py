"""Picture of rain, wind, sea and crowd: clear shapes whose number, speed or reach follows the intensity."""

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import VideoPixels
from soundstage.data.world.ambience import Ambience
from soundstage.data.world.backdrop import Grid

Clip = Float[Tensor, "3 frames height width"]  # RGB in [-1, 1]
Series = Float[Tensor, " frames"]
Colour = tuple[int, int, int]


class Place(NamedTuple):
    """Colours of a still backdrop."""

    top: Colour
    horizon: Colour
    ground: Colour
    line: float  # y where the ground begins


PLACES: dict[str, Place] = {
    "street": Place((84, 92, 106), (132, 140, 150), (70, 72, 78), 0.74),
    "meadow": Place((126, 152, 176), (190, 204, 206), (92, 140, 70), 0.72),
    "lake": Place((98, 112, 126), (152, 164, 170), (54, 92, 118), 0.60),
    "desert": Place((150, 178, 206), (226, 216, 190), (212, 174, 104), 0.70),
    "snow": Place((120, 134, 160), (190, 198, 212), (236, 240, 244), 0.72),
    "day": Place((116, 170, 222), (206, 224, 236), (226, 204, 150), 0.30),
    "dusk": Place((70, 54, 100), (240, 150, 96), (150, 112, 96), 0.30),
    "night": Place((8, 10, 30), (34, 40, 76), (70, 66, 74), 0.30),
    "hall": Place((40, 34, 44), (84, 66, 62), (52, 40, 38), 0.90),
    "square": Place((132, 176, 214), (214, 222, 226), (150, 144, 136), 0.60),
    "stage": Place((46, 14, 78), (150, 50, 160), (36, 16, 50), 0.90),
}
WATER: dict[str, Colour] = {"day": (30, 110, 160), "dusk": (96, 66, 110), "night": (18, 34, 74)}
BLADES: dict[str, Colour] = {"meadow": (46, 104, 38), "desert": (150, 116, 50), "snow": (112, 92, 70)}

DROP_GROUPS, DROPS_PER_GROUP = 4, 9  # at aspect 1; with the intensity one group after the other shows
DROP_SPEEDS = (1.7, 2.0, 2.3, 2.6)  # heights/s, of each group
DROP_HALF_LENGTH, DROP_HALF_WIDTH, DROP_SLANT = 0.062, 0.011, 0.22
DROP_COLOUR, DROP_OPACITY = (214, 226, 240), 0.72
NUM_LEAVES = 10
LEAF_COLOURS: tuple[Colour, ...] = ((206, 96, 24), (226, 164, 40), (150, 62, 28), (122, 134, 34))
NUM_BLADES, BLADE_HEIGHT, BLADE_BEND = 11, 0.24, 0.16
HEAD_ROWS = ((6, 0.072, 0.56, 0.0), (5, 0.098, 0.74, 0.5))  # heads, radius, y, shift in spacings
HEAD_COLOURS: tuple[Colour, ...] = ((236, 192, 156), (198, 140, 100), (142, 92, 62), (92, 58, 42))
SHIRT_COLOURS: tuple[Colour, ...] = (
    (186, 48, 52),
    (48, 88, 176),
    (60, 132, 76),
    (208, 170, 60),
    (132, 70, 150),
)
BOB = 0.13  # heights, at intensity 1


def render_ambience(
    ambiences: Sequence[Ambience],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str = "cpu",
) -> VideoPixels:
    """Draw each ambience alone; frame k shows time k / frame_rate."""
    pixels = torch.empty(len(ambiences), 3, num_frames, height, width, device=torch.device(device))
    for clip, ambience in zip(pixels, ambiences, strict=True):
        clip.copy_(_backdrop(ambience, clip)[:, None])
        PAINTERS[ambience.element](clip, ambience, float(frame_rate))
    return pixels


def paint_layer(clip: Clip, layer: Ambience, frame_rate: Fraction | float | int) -> None:
    """Lay rain or wind over a clip, in place."""
    PAINTERS[layer.element](clip, layer, float(frame_rate))


def _backdrop(ambience: Ambience, like: Clip) -> Float[Tensor, "3 height width"]:
    grid = Grid.of(like.shape[-2], like.shape[-1], like.device)
    place = PLACES[ambience.place]
    top, horizon, ground = (_colour(rgb, like) for rgb in place[:3])
    sky = torch.lerp(top, horizon, (grid.y / place.line).clamp(max=1))
    below = ((grid.y - place.line) * like.shape[-2] + 0.5).clamp(0, 1)
    depth = ((grid.y - place.line) / (1 - place.line)).clamp(0, 1)
    rows = torch.lerp(sky, ground * (1.06 - 0.22 * depth), below)  # (3, height, 1)
    return rows.expand(-1, -1, like.shape[-1]).clamp(0, 1).mul(2).sub(1)


def _colour(rgb: Colour, like: Tensor) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(rgb, dtype=like.dtype, device=like.device)[:, None, None] / 255


def _times(clip: Clip, frame_rate: float) -> list[float]:
    return [frame / frame_rate for frame in range(clip.shape[1])]


def _series(values: Sequence[float], like: Tensor) -> Series:
    return torch.tensor(values, dtype=torch.float32, device=like.device)


def paint_rain(clip: Clip, rain: Ambience, frame_rate: float) -> None:
    """Draw slanted streaks that fall; more of them show the harder it rains.

    Each group of streaks is drawn once on a sheet whose edges meet; every frame shows it moved on.
    """
    height, width = clip.shape[-2:]
    times = _times(clip, frame_rate)
    slant = DROP_SLANT if rain.blows_right else -DROP_SLANT
    sheets = _drop_sheets(rain, slant, clip)  # (groups, height, width)
    shown = _series([rain.intensity(time) for time in times], clip) * (DROP_GROUPS + 0.4)
    rows = torch.arange(height, device=clip.device)
    columns = torch.arange(width, device=clip.device)
    cover = torch.zeros(len(times), height, width, device=clip.device)
    for group, (sheet, speed) in enumerate(zip(sheets, DROP_SPEEDS, strict=True)):
        fallen = _series(times, clip) * (speed * height)
        down = (rows - fallen.round().long()[:, None]).remainder(height)
        along = (columns - (fallen * slant).round().long()[:, None]).remainder(width)
        opacity = (shown - group).clamp(0, 1) * DROP_OPACITY
        moved = sheet[down[:, :, None], along[:, None, :]] * opacity[:, None, None]
        torch.maximum(cover, moved, out=cover)
    colour = _colour(DROP_COLOUR, clip)[..., None] * 2 - 1
    clip.lerp_(colour.expand_as(clip), cover.expand_as(clip))


def _drop_sheets(rain: Ambience, slant: float, like: Clip) -> Float[Tensor, "groups height width"]:
    height, width = like.shape[-2:]
    aspect = width / height
    rng = random.Random(rain.seed)
    count = max(round(DROPS_PER_GROUP * aspect), 1)
    places = [  # about evenly apart: one drop in each column of the sheet, anywhere in it
        [((drop + rng.random()) / count * aspect, rng.random()) for drop in range(count)]
        for _ in range(DROP_GROUPS)
    ]
    centre = torch.tensor(places, dtype=torch.float32, device=like.device)  # (groups, drops, 2)
    grid = Grid.of(height, width, like.device)
    x = grid.x - (aspect - centre[..., 0] if rain.flipped else centre[..., 0])[..., None, None]
    y = grid.y - centre[..., 1, None, None]
    x = torch.remainder(x + aspect / 2, aspect) - aspect / 2
    y = torch.remainder(y + 0.5, 1.0) - 0.5
    norm = math.hypot(slant, 1.0)
    across = (x - slant * y).abs() / norm
    along = (slant * x + y).abs() / norm
    cover = ((DROP_HALF_WIDTH - across) * height + 0.5).clamp(0, 1)
    cover = cover * ((DROP_HALF_LENGTH - along) * height + 0.5).clamp(0, 1)
    return cover.amax(1)


def paint_wind(clip: Clip, wind: Ambience, frame_rate: float) -> None:
    """Draw leaves that fly as fast as the wind blows, and alone also grass that bends with it."""
    times = _times(clip, frame_rate)
    aspect = clip.shape[-1] / clip.shape[-2]
    if not wind.is_layer:
        _paint_grass(clip, wind, times)
    rng = random.Random(wind.seed)
    travelled = [wind.travelled(time) for time in times]
    span = aspect + 0.2
    forward = 1 if wind.blows_right != wind.flipped else -1
    count = max(round(NUM_LEAVES * aspect * (0.6 if wind.is_layer else 1.0)), 3)
    for leaf in range(count):
        start, speed, phase = rng.random() * span, rng.uniform(1.5, 2.3), rng.random()
        y0 = 0.08 + 0.72 * (leaf + rng.random()) / count
        xs = [(start + forward * speed * way) % span - 0.1 for way in travelled]
        xs = [aspect - x for x in xs] if wind.flipped else xs
        ys = [y0 + 0.035 * math.sin(2 * math.pi * (time / 0.8 + phase)) for time in times]
        sign = -1 if wind.flipped else 1
        angles = [sign * (0.6 * math.sin(2 * math.pi * (time / 0.8 + phase)) + 0.3) for time in times]
        colour = rng.choice(LEAF_COLOURS)
        _paint_ellipse(clip, xs, ys, (0.042, 0.021), colour, angles)


def _paint_grass(clip: Clip, wind: Ambience, times: Sequence[float]) -> None:
    height, width = clip.shape[-2:]
    grid = Grid.of(height, width, clip.device)
    base = PLACES[wind.place].line + 0.16
    top, bottom = round((base - BLADE_HEIGHT) * height), round(base * height)
    up = ((base - grid.y[top:bottom]) / BLADE_HEIGHT).clamp(0, 1)  # (rows, 1)
    bend = _series([wind.intensity(time) for time in times], clip) * BLADE_BEND
    bend = bend if wind.blows_right else -bend
    rng = random.Random(wind.seed + 1)
    aspect = width / height
    count = max(round(NUM_BLADES * aspect), 3)
    roots = [(blade + 0.2 + 0.6 * rng.random()) / count * aspect for blade in range(count)]
    if wind.flipped:
        roots = [aspect - root for root in roots]
    cover = torch.zeros(len(times), bottom - top, width, device=clip.device)
    for root in roots:
        line = root + bend[:, None, None] * up**2  # (frames, rows, 1)
        half = 0.020 * (1 - 0.85 * up)
        torch.maximum(cover, ((half - (grid.x - line).abs()) * height + 0.5).clamp(0, 1), out=cover)
    colour = _colour(BLADES[wind.place], clip)[..., None] * 2 - 1
    strip = clip[..., top:bottom, :]
    strip.lerp_(colour.expand_as(strip), cover.expand_as(strip))


def paint_sea(clip: Clip, sea: Ambience, frame_rate: float) -> None:
    """Draw water that reaches up the beach with the intensity, with foam at its edge and moving swell."""
    height, width = clip.shape[-2:]
    times = _times(clip, frame_rate)
    grid = Grid.of(height, width, clip.device)
    x = width / height - grid.x if sea.flipped else grid.x
    line = PLACES[sea.place].line
    strength = _series([sea.intensity(time) for time in times], clip)[:, None, None]
    way = _series([sea.travelled(time) for time in times], clip)[:, None, None]
    phase = sea.seed % 997 / 997
    edge = 0.60 + 0.24 * strength + 0.025 * torch.sin(2 * math.pi * (1.3 * x + phase))  # (frames, 1, width)
    top = math.floor(line * height)
    y = grid.y[top:]
    near = ((y - line) / (1 - line)).clamp_min(0)  # (rows, 1) 0 at the horizon
    turns = 5 * torch.sqrt(near + 0.02) * 1.6 - 2.2 * way + 0.25 * torch.sin(2 * math.pi * (x + phase))
    crest = torch.sin(2 * math.pi * turns) * (0.10 + 0.25 * strength) * (0.3 + near)
    water = _colour(WATER[sea.place], clip)[..., None] * (1 + crest)  # (3, frames, rows, width)
    water = torch.where(y >= line, water, clip[..., top:, :] * 0.5 + 0.5)
    wet = ((edge - y) * height + 0.5).clamp(0, 1)
    foam = (1 - ((edge - y - 0.015).abs() / (0.022 + 0.035 * strength))).clamp(0, 1)
    strip = clip[..., top:, :]
    strip.lerp_(water.clamp(0, 1) * 2 - 1, wet.expand_as(strip))
    strip.lerp_(torch.full_like(strip, 0.92), foam.expand_as(strip))


def paint_crowd(clip: Clip, crowd: Ambience, frame_rate: float) -> None:
    """Draw two rows of people that bob up and down, higher the louder they are."""
    times = _times(clip, frame_rate)
    aspect = clip.shape[-1] / clip.shape[-2]
    rng = random.Random(crowd.seed)
    strengths = [crowd.intensity(time) for time in times]
    for count, radius, y, shift in HEAD_ROWS:
        heads = max(round(count * aspect), 2)
        for head in range(heads + 1):
            x = (head + shift + rng.uniform(-0.12, 0.12)) / heads * aspect
            x = aspect - x if crowd.flipped else x
            rate, phase = rng.uniform(1.3, 2.0), rng.random()
            rises = [
                BOB * strength * abs(math.sin(math.pi * (rate * time + phase)))
                for strength, time in zip(strengths, times, strict=True)
            ]
            xs, ys = [x] * len(times), [y - rise for rise in rises]
            shirt, skin = rng.choice(SHIRT_COLOURS), rng.choice(HEAD_COLOURS)
            bodies = [top + 3.1 * radius for top in ys]
            _paint_ellipse(clip, xs, bodies, (1.45 * radius, 2.5 * radius), shirt)
            _paint_ellipse(clip, xs, ys, (radius, 1.15 * radius), skin)


def _paint_ellipse(
    clip: Clip,
    xs: Sequence[float],
    ys: Sequence[float],
    radii: tuple[float, float],
    rgb: Colour,
    angles: Sequence[float] | None = None,
) -> None:
    """Blend an ellipse with a dark rim into a window around it in every frame.

    Args:
        xs, ys: Its centre in each frame, in picture heights.
        angles: By how much it is turned in each frame, in radians.
    """
    _, num_frames, height, width = clip.shape
    device = clip.device
    x, y = (_series(values, clip)[:, None, None] for values in (xs, ys))
    wide, high = radii if angles is None else (max(radii), max(radii))
    columns = torch.arange(math.ceil(2 * wide * height) + 3, device=device)
    rows = torch.arange(math.ceil(2 * high * height) + 3, device=device)[:, None]
    across = ((x - wide) * height - 1).floor().long() + columns  # (frames, 1, columns)
    down = ((y - high) * height - 1).floor().long() + rows  # (frames, rows, 1)
    dx, dy = (across + 0.5) / height - x, (down + 0.5) / height - y
    if angles is not None:
        angle = _series(angles, clip)[:, None, None]
        dx, dy = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    reach = torch.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2)
    cover = ((1 - reach) * (min(radii) * height) + 0.5).clamp(0, 1)
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    cover = cover * inside
    light = ((1 - reach) * 4).clamp(0, 1) * 0.35 + 0.65
    paint = (_colour(rgb, clip)[..., None] * light).mul_(2).sub_(1)  # (3, frames, rows, columns)
    frame = torch.arange(num_frames, device=device)[:, None, None]
    place = ((frame * height + down.clamp(0, height - 1)) * width + across.clamp(0, width - 1)).flatten()
    shown = cover.flatten() > 0  # a pixel outside shares its place with one inside: only one may be written
    place = place[shown]
    canvas = clip.view(3, -1)
    canvas[:, place] = torch.lerp(canvas[:, place], paint.flatten(1)[:, shown], cover.flatten()[shown])


PAINTERS: dict[str, Callable[[Tensor, Ambience, float], None]] = {
    "rain": paint_rain,
    "wind": paint_wind,
    "sea": paint_sea,
    "crowd": paint_crowd,
}
