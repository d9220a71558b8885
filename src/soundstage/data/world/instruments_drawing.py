"""Paint instruments: smooth shapes, given by their distance, each into the part of the picture it may touch.

Distances are in picture heights, negative inside. Everything is batched over clips and frames.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import VideoPixels
from soundstage.data.world.backdrop import SKIES, SPOTS, Grid
from soundstage.data.world.instruments_stage import Stage

Field = Float[Tensor, "#b #frames #rows #columns"]  # one value per pixel, or for all of an axis
PerFrame = Float[Tensor, "#b #frames 1 1"]

Colour = tuple[int, int, int]  # 8-bit RGB


class Region:
    """A rectangle of every frame of every clip."""

    def __init__(self, pixels: VideoPixels, grid: Grid, scale: float) -> None:
        self.pixels = pixels
        self.x, self.y = grid.x, grid.y
        self.scale = scale  # pixels per picture height

    def paint(
        self,
        distance: Field,
        colours: Float[Tensor, "b 3"],
        *,
        light: Field | None = None,
        whiteness: PerFrame | None = None,
    ) -> None:
        """Blend a shape in, its edge one pixel wide.

        Args:
            colours: In [-1, 1], one of each clip.
            light: Factor on the brightness of each pixel.
            whiteness: How far the colour is turned into white, from 0 to 1.
        """
        ink = colours[:, :, None, None, None]
        if light is not None:
            ink = ((ink + 1) * light[:, None]).sub_(1).clamp_(max=1)
        if whiteness is not None:
            ink = ink + (1 - ink) * whiteness[:, None]
        self._lay((distance * -self.scale).add_(0.5).clamp_(0, 1), ink)

    def blend(self, cover: Field, colours: Float[Tensor, "b 3"]) -> None:
        """Mix a colour in, as much as `cover` says, from 0 to 1."""
        self._lay(cover, colours[:, :, None, None, None])

    def _lay(self, cover: Field, ink: Float[Tensor, "b 3 #frames #rows #columns"]) -> None:
        self.pixels.lerp_(ink.expand_as(self.pixels), cover[:, None].expand_as(self.pixels))


class Canvas:
    """Pictures to paint on, in place."""

    def __init__(self, pixels: VideoPixels) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[-2:]
        self.grid = Grid.of(self.height, self.width, pixels.device)

    def region(self, left: float, top: float, right: float, bottom: float) -> Region:
        """Cut out a rectangle, given in picture heights, one pixel wider for the edges."""
        columns = self._span(left, right, self.width)
        rows = self._span(top, bottom, self.height)
        grid = Grid(self.grid.x[columns], self.grid.y[rows])
        return Region(self.pixels[..., rows, columns], grid, float(self.height))

    def _span(self, first: float, last: float, extent: int) -> slice:
        start = max(int(first * self.height) - 1, 0)
        return slice(start, max(min(int(last * self.height) + 2, extent), start + 1))


def draw_stages(stages: Sequence[Stage], height: int, width: int, device: torch.device) -> VideoPixels:
    """Draw each background as a clip of one frame."""
    grid = Grid.of(height, width, device)
    ends = torch.tensor([SKIES[stage.background] for stage in stages], dtype=torch.float32) / 255
    tint = torch.tensor([stage.tint for stage in stages], dtype=torch.float32)
    upper, lower = (ends + tint[:, None]).to(device)[..., None, None].unbind(1)  # (b, 3, 1, 1) each
    pictures = torch.lerp(upper, lower, grid.y).repeat(1, 1, 1, width)
    for picture, stage in zip(pictures, stages, strict=True):
        for spot in SPOTS.get(stage.background, ()):
            x = (spot.x + stage.texture) % 1.0 * stage.aspect
            glow = torch.exp(-(((grid.x - x) / spot.wide) ** 2) - ((grid.y - spot.y) / spot.high) ** 2)
            colour = torch.tensor(spot.colour, dtype=torch.float32, device=device)[:, None, None] / 255
            picture.lerp_(colour.expand_as(picture), (glow * spot.strength).expand_as(picture))
        if stage.flipped:
            picture.copy_(picture.flip(-1))
    return pictures.clamp_(0, 1).mul_(2).sub_(1)[:, :, None]


def render_stages(
    subjects: Sequence[Any],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: Fraction | float | int,  # noqa: ARG001 - the signature of all renderers
    device: torch.device | str,
) -> VideoPixels:
    """Draw only the place of each subject, for what is heard and not seen."""
    still = draw_stages([subject.stage for subject in subjects], height, width, torch.device(device))
    return still.expand(-1, -1, num_frames, -1, -1).contiguous()


def inks(colours: Sequence[Colour], device: torch.device) -> Float[Tensor, "b 3"]:
    """8-bit colours in [-1, 1]."""
    return torch.tensor(colours, dtype=torch.float32, device=device) / 127.5 - 1


def per_clip(values: Sequence[float], device: torch.device) -> PerFrame:
    """One value of each clip, ready to meet pixels."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None, None]


def per_frame(values: Sequence[Sequence[float]], device: torch.device) -> PerFrame:
    """One value of each frame, ready to meet pixels."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, :, None, None]


def disc(x: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
    """Distance to a disc around the origin."""
    return torch.sqrt(x * x + y * y) - radius


def box(
    x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float, corner: float
) -> Tensor:
    """Distance to an upright box with round corners around the origin."""
    over_x, over_y = x.abs() - half_width + corner, y.abs() - half_height + corner
    outside = torch.sqrt(over_x.clamp_min(0) ** 2 + over_y.clamp_min(0) ** 2)
    return outside + torch.maximum(over_x, over_y).clamp(max=0) - corner


def rod(x: Tensor, y: Tensor, end_x: Tensor, end_y: Tensor, half_width: float) -> Tensor:
    """Distance to a thick line from the origin to a point."""
    along = ((x * end_x + y * end_y) / (end_x**2 + end_y**2)).clamp(0, 1)
    return disc(x - along * end_x, y - along * end_y, half_width)


def slanted(x: Tensor, y: Tensor, lean: Tensor, length: float, half_width: float) -> Tensor:
    """Distance to a thick line that goes up from the origin, `lean` to the right for each height; cheap."""
    across = torch.addcmul(x, lean, y).abs_().mul_(torch.rsqrt(1 + lean * lean))
    return torch.maximum(across.sub_(half_width), torch.maximum(y, -length - y))


def round_light(distance: Tensor, depth: Tensor | float) -> Tensor:
    """Light on something round: darker towards its outline."""
    return (distance / -depth).clamp(0, 1).mul(0.45).add(0.6)
