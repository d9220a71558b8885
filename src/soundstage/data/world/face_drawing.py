"""Draw talking faces: the still part of each once, then mouth and eyes into windows of every frame.

Whatever moves up and down is drawn as intervals of columns, so that it covers exactly as much of a pixel as
it should: a mouth that opens by a tenth of a pixel is a tenth of a pixel darker.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import VideoPixels
from soundstage.data.world.backdrop import Grid, draw_backgrounds
from soundstage.data.world.face import FACE_COLOURS, HAIR_COLOURS, HALF_HEIGHT, HALF_WIDTH, Face
from soundstage.data.world.voice import read_tracks

# Places and sizes in picture heights, of a face of scale 1, from its middle.
MOUTH_Y, MOUTH_WIDTH = 0.145, 0.285  # width of the widest mouth
MOUTH_OPEN, UPPER_SHARE = (
    0.155,
    0.30,
)  # height of the widest opening, and how much of it lies above the middle
LIP = 0.026  # thickness
TEETH = 0.014  # how much of the upper teeth an open mouth shows
EYE_X, EYE_Y, EYE_WIDE, EYE_HIGH, PUPIL = 0.098, -0.055, 0.056, 0.046, 0.027
MOUTH_WINDOW, EYE_WINDOW = (0.36, 0.25), (0.15, 0.12)  # width and height of what moves
BLINK = 0.09  # s from open to closed, and back

INSIDE, TOOTH, TONGUE = (48, 8, 20), (248, 246, 240), (212, 92, 104)
LIPS = (186, 34, 58)
EYE_WHITE, IRIS, LID = (252, 252, 252), (28, 26, 34), 0.62

Mask = Float[Tensor, "b height width"]
Columns = Float[Tensor, "b _ 1 columns"]  # in every frame, or once for all
Patch = Float[Tensor, "b frames rows columns"]


def render_faces(
    subjects: Sequence[Face],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,
    device: torch.device | str = "cpu",
) -> VideoPixels:
    """Draw each face as a clip; frame k shows time k / frame_rate."""
    device = torch.device(device)
    canvas = _Canvas.of(subjects, height, width, device)
    _draw_head(canvas)
    pixels = canvas.pictures.mul(2).sub_(1)[:, :, None].repeat(1, 1, num_frames, 1, 1)
    times = torch.arange(num_frames, device=device) / float(frame_rate)
    _paint(pixels, _mouth_window(canvas), lambda window: _mouths(window, subjects, times))
    for side in (-1, 1):
        _paint(pixels, _eye_window(canvas, side), lambda window: _eyes(window, subjects, times))
    return pixels


def render_places(
    subjects: Sequence[Face],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,  # noqa: ARG001, part of the interface; nothing moves
    device: torch.device | str = "cpu",
) -> VideoPixels:
    """Draw the places of the faces without them."""
    canvas = _Canvas.of(subjects, height, width, torch.device(device))
    return canvas.pictures.mul(2).sub_(1)[:, :, None].repeat(1, 1, num_frames, 1, 1)


class _Canvas(NamedTuple):
    """Pictures in the making, with coordinates around the middle of each face."""

    faces: Sequence[Face]
    pictures: Float[Tensor, "b 3 height width"]  # RGB in [0, 1]
    x: Float[Tensor, "b 1 width"]  # picture heights over the face's scale
    y: Float[Tensor, "b height 1"]
    pixel: Float[Tensor, "b 1 1"]  # size of a pixel in the same unit

    @classmethod
    def of(cls, faces: Sequence[Face], height: int, width: int, device: torch.device) -> "_Canvas":
        """Begin with the backgrounds."""
        grid = Grid.of(height, width, device)
        pictures = draw_backgrounds(faces, grid).clamp_(0, 1)
        flipped = [row for row, face in enumerate(faces) if face.flipped]
        if flipped:
            pictures[flipped] = pictures[flipped].flip(-1)
        x, y, scale = _scalars([(face.x, face.y, face.scale) for face in faces], device)
        return cls(faces, pictures, (grid.x - x) / scale, (grid.y - y) / scale, 1 / (height * scale))

    def cover(self, distance: Mask) -> Mask:
        """How much of each pixel lies within a shape, given the distance to its outline."""
        return (0.5 - distance / self.pixel).clamp_(0, 1)

    def blend(self, colour: Float[Tensor, "b 3 ..."], cover: Mask, rows: Sequence[int] | None = None) -> None:
        """Paint a colour, or pictures, over the pictures of all faces or of some."""
        colour = colour if colour.ndim == 4 else colour[:, :, None, None]
        if rows is None:
            self.pictures.lerp_(colour.expand_as(self.pictures), cover[:, None].expand_as(self.pictures))
        elif rows:
            some = self.pictures[rows]
            self.pictures[rows] = some.lerp(colour[rows].expand_as(some), cover[rows, None].expand_as(some))


def _scalars(rows: Sequence[tuple[float, ...]], device: torch.device) -> tuple[Float[Tensor, "b 1 1"], ...]:
    return torch.tensor(rows, dtype=torch.float32).to(device)[..., None, None].unbind(1)


def _colours(rgb: Sequence[tuple[int, int, int]], device: torch.device) -> Float[Tensor, "b 3"]:
    return (torch.tensor(rgb, dtype=torch.float32) / 255).to(device)


def _ellipse(x: Tensor, y: Tensor, wide: float, high: float) -> Mask:
    """Distance to an ellipse, exact on its outline to first order."""
    norm = torch.sqrt((x / wide) ** 2 + (y / high) ** 2)
    slope = torch.sqrt((x / wide**2) ** 2 + (y / high**2) ** 2)
    return norm * (norm - 1) / slope.clamp_min(1e-6)


def _draw_head(canvas: _Canvas) -> None:
    """Shoulders, hair behind, head, hair in front, brows, nose."""
    device = canvas.pictures.device
    skin = _colours([FACE_COLOURS[face.colour] for face in canvas.faces], device)
    hair = _colours([HAIR_COLOURS[face.hair] for face in canvas.faces], device)
    x, y = canvas.x, canvas.y
    side = x * torch.tensor([-1.0 if f.flipped else 1.0 for f in canvas.faces], device=device)[:, None, None]
    _draw_body(canvas, skin)
    _draw_hair_behind(canvas, hair)
    head = _ellipse(x, y, HALF_WIDTH, HALF_HEIGHT)
    for ear in (-1, 1):
        canvas.blend(skin * 0.86, canvas.cover(_ellipse(x - ear * 0.245, y + 0.02, 0.034, 0.06)))
    light = (1.06 - 0.9 * ((side + 0.08) ** 2 + (y + 0.10) ** 2)).clamp_(0.72, 1.06)
    rim = (1 + head / 0.03).clamp_(0, 1) * 0.16  # darker towards the outline
    canvas.blend((skin[:, :, None, None] * (light - rim)[:, None]).clamp_(0, 1), canvas.cover(head))
    _draw_hair_in_front(canvas, hair, head, side)
    for eye in (-1, 1):
        brow = _ellipse(x - eye * EYE_X, y + 0.128 + 1.6 * (x - eye * EYE_X) ** 2, 0.058, 0.0125)
        canvas.blend(torch.minimum(hair * 0.7, skin * 0.55), canvas.cover(brow))
    nose = _ellipse(x, y - 0.055, 0.030, 0.022)
    canvas.blend(skin * 0.80, canvas.cover(nose))
    shine = _ellipse(side + 0.008, y - 0.045, 0.018, 0.013)
    canvas.blend((skin * 1.12).clamp(max=1), canvas.cover(shine) * 0.8)


def _draw_body(canvas: _Canvas, skin: Float[Tensor, "b 3"]) -> None:
    """Neck and shoulders, in a dark tone of the face's opposite colour."""
    neck = torch.maximum(canvas.x.abs() - 0.085, 0.2 - canvas.y)
    canvas.blend(skin * 0.72, canvas.cover(neck))
    body = _ellipse(canvas.x, canvas.y - 0.62, 0.36, 0.27)
    canvas.blend(0.22 + 0.3 * (1 - skin), canvas.cover(body))


def _draw_hair_behind(canvas: _Canvas, hair: Float[Tensor, "b 3"]) -> None:
    """What is seen beside and above the head."""
    x, y = canvas.x, canvas.y
    styles = [face.style for face in canvas.faces]
    long = [row for row, style in enumerate(styles) if style == "long"]
    if long:
        crown = _ellipse(x, y + 0.04, HALF_WIDTH + 0.055, HALF_HEIGHT + 0.02)
        sides = torch.maximum(x.abs() - (HALF_WIDTH + 0.045 + 0.06 * y), (y - 0.17).abs() - 0.20)
        canvas.blend(hair * 0.82, canvas.cover(torch.minimum(crown, sides)), long)
    curly = [row for row, style in enumerate(styles) if style == "curly"]
    if curly:
        locks = torch.full_like(x + y, math.inf)
        for number in range(9):
            angle = math.pi * (number / 8 * 1.16 - 0.08)
            away_x, away_y = math.cos(angle) * (HALF_WIDTH + 0.005), -math.sin(angle) * (HALF_HEIGHT - 0.035)
            locks = torch.minimum(locks, torch.hypot(x - away_x, y - away_y + 0.02) - 0.078)
        canvas.blend(hair * 0.9, canvas.cover(locks), curly)


def _draw_hair_in_front(
    canvas: _Canvas, hair: Float[Tensor, "b 3"], head: Mask, side: Float[Tensor, "b 1 width"]
) -> None:
    """What covers the forehead; its parting is on one side."""
    y = canvas.y
    styles = [face.style for face in canvas.faces]
    lines: dict[str, Callable[[], Mask]] = {
        "short": lambda: -0.195 + 0.9 * (side - 0.05) ** 2,
        "long": lambda: -0.235 + 3.6 * (side - 0.06) ** 2,
        "curly": lambda: -0.205 + 0.016 * torch.cos(side * 52) + 1.1 * side**2,
    }
    cap = {"short": 0.016, "long": 0.012, "curly": 0.03}
    shade = (1.05 + 0.5 * (y + 0.2) + 0.10 * torch.cos(side * 60)).clamp(0.7, 1.1)[:, None]
    for style, line in lines.items():
        rows = [row for row, one in enumerate(styles) if one == style]
        if rows:
            region = torch.maximum(head - cap[style], y - line())
            canvas.blend((hair[:, :, None, None] * shade).clamp_(0, 1), canvas.cover(region), rows)


class _Window(NamedTuple):
    """A window of each picture; coordinates are those of the face, from the window's own middle."""

    top: list[int]
    left: list[int]
    rows: int
    columns: int
    x: Columns
    y: Float[Tensor, "b 1 rows 1"]
    pixel: Float[Tensor, "b 1 1 1"]


def _mouth_window(canvas: _Canvas) -> _Window:
    return _window(canvas, 0.0, MOUTH_Y, MOUTH_WINDOW)


def _eye_window(canvas: _Canvas, side: int) -> _Window:
    return _window(canvas, side * EYE_X, EYE_Y, EYE_WINDOW)


def _window(canvas: _Canvas, x: float, y: float, size: tuple[float, float]) -> _Window:
    """Cut a window of `size` around a place of each face, moved to lie within the picture."""
    height, width = canvas.pictures.shape[-2:]
    largest = max(face.scale for face in canvas.faces) * height
    columns, rows = (
        min(math.ceil(size[0] * largest) + 1, width),
        min(math.ceil(size[1] * largest) + 1, height),
    )
    left, top = [], []
    for face in canvas.faces:
        middle_x, middle_y = (face.x + x * face.scale) * height, (face.y + y * face.scale) * height
        left.append(min(max(round(middle_x - columns / 2), 0), width - columns))
        top.append(min(max(round(middle_y - rows / 2), 0), height - rows))
    across = torch.stack([canvas.x[row, :, one : one + columns] for row, one in enumerate(left)])
    down = torch.stack([canvas.y[row, one : one + rows] for row, one in enumerate(top)])
    return _Window(top, left, rows, columns, across[:, None] - x, down[:, None] - y, canvas.pixel[..., None])


class _Layer(NamedTuple):
    """Something to paint in every frame of a window."""

    colour: tuple[int, int, int] | float  # a factor on what is beneath where it is one number
    cover: Patch


def _paint(pixels: VideoPixels, window: _Window, layers: Callable[[_Window], Sequence[_Layer]]) -> None:
    """Blend layers into the window of each clip, the last on top."""
    places = [
        pixels[row, :, :, top : top + window.rows, left : left + window.columns]
        for row, (top, left) in enumerate(zip(window.top, window.left, strict=True))
    ]
    patches = torch.stack(places)  # (b, 3, frames, rows, columns)
    for colour, cover in layers(window):
        cover = cover[:, None].expand_as(patches)
        if isinstance(colour, float):
            patches.sub_((patches + 1).mul_(cover * (1 - colour)))  # black is -1
        else:
            paint = torch.tensor(colour, dtype=torch.float32, device=pixels.device) / 127.5 - 1
            patches.lerp_(paint[:, None, None, None].expand_as(patches), cover)
    for place, patch in zip(places, patches, strict=True):
        place.copy_(patch)


def _between(window: _Window, top: Columns, bottom: Columns) -> Patch:
    """How much of each pixel lies between two curves, exactly."""
    half = window.pixel / 2
    low = torch.minimum(window.y + half, bottom)
    high = torch.maximum(window.y - half, top)
    return ((low - high) / window.pixel).clamp_(0, 1)


def _mouths(window: _Window, faces: Sequence[Face], times: Float[Tensor, " frames"]) -> list[_Layer]:
    """Lips, the dark between them, upper teeth, tongue."""
    said = [face.utterance for face in faces]
    opening, spread, tongue = (
        read_tracks(tracks, times)[..., None, None]  # (b, frames, 1, 1)
        for tracks in ([s.aperture for s in said], [s.spread for s in said], [s.tongue for s in said])
    )
    smile = torch.tensor([face.smile for face in faces], device=times.device)[:, None, None, None]
    half = spread * (MOUTH_WIDTH / 2)
    along = window.x / half  # -1 and 1 at the corners
    bow = torch.sqrt((1 - along**2).clamp_min(0))
    inside = bow * (1 - along**2).clamp(0, 1).pow(0.15)
    middle = -smile * spread * along.clamp(-1.2, 1.2) ** 2
    top = middle - opening * (MOUTH_OPEN * UPPER_SHARE) * inside
    bottom = middle + opening * (MOUTH_OPEN * (1 - UPPER_SHARE)) * inside
    outer = torch.sqrt((1 - (window.x / (half + 0.5 * LIP)) ** 2).clamp_min(0))
    full = LIP * (0.85 + 0.45 * (1 - spread))  # rounded lips are fuller
    lips = _between(window, top - full * outer, bottom + full * 1.1 * outer)
    dark = _between(window, top, bottom)
    teeth = _between(window, top, torch.minimum(top + TEETH * bow, bottom))
    teeth = teeth * ((spread - 0.45) / 0.3).clamp(0, 1)  # behind rounded lips they are not seen
    deep = middle + MOUTH_OPEN * 0.7 * bow * opening
    rise = (0.34 + 0.62 * tongue) * opening * MOUTH_OPEN
    flesh = _between(window, torch.maximum(deep - rise * (1 - 0.6 * along**2), top), bottom)
    flesh = flesh * ((opening + tongue - 0.3) / 0.25).clamp(0, 1)
    return [_Layer(LIPS, lips), _Layer(INSIDE, dark), _Layer(TONGUE, flesh), _Layer(TOOTH, teeth)]


def _eyes(window: _Window, faces: Sequence[Face], times: Float[Tensor, " frames"]) -> list[_Layer]:
    """White, pupil and lid."""
    device = times.device
    opening = torch.ones(len(faces), len(times), device=device)
    for row, face in enumerate(faces):
        for blink in face.blinks:
            opening[row] = torch.minimum(opening[row], ((times - blink).abs() / BLINK).clamp(0, 1))
    opening = opening[..., None, None]
    gaze = torch.tensor([face.gaze for face in faces], device=device)[:, None, None, None]
    bow = torch.sqrt((1 - (window.x / EYE_WIDE) ** 2).clamp_min(0))
    bottom = EYE_HIGH * bow
    top = bottom - 2 * EYE_HIGH * bow * opening
    white = _between(window, top, bottom)
    aside = window.x - 0.016 * gaze
    reach = torch.sqrt((PUPIL**2 - aside**2).clamp_min(0))
    pupil = _between(window, torch.maximum(-reach, top), torch.minimum(reach, bottom))
    lid = _between(window, top - 0.014 * bow, top) * 0.8
    skin = _between(window, -EYE_HIGH * bow, top) * 0.25
    return [_Layer(LID, skin), _Layer(EYE_WHITE, white), _Layer(IRIS, pupil), _Layer(0.35, lid)]
