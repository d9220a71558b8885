"""Bring pictures to a size: cover and crop, fit and pad, or extend; and undo it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from soundstage.core.errors import RequestError

Fit = Literal["cover", "pad", "extend"]
Size = tuple[int, int]  # height, width
ExactPicture = Float[Tensor, "rows columns 3"]  # RGB in [0, 255], not rounded

CENTRE = (0.5, 0.5)
_CHUNK = 8  # frames scaled at once


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a scaled picture lies on a canvas; negative offsets mean that its edges are cut."""

    source: Size  # of the picture as it was
    scaled: Size  # of the picture on the canvas
    canvas: Size
    top: int  # of the scaled picture, in rows of the canvas
    left: int
    repeat_edges: bool = False  # what surrounds the picture: its own edges, or black

    @property
    def inside(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that show the picture."""
        rows = slice(max(self.top, 0), min(self.top + self.scaled[0], self.canvas[0]))
        return rows, slice(max(self.left, 0), min(self.left + self.scaled[1], self.canvas[1]))

    @property
    def visible(self) -> tuple[slice, slice]:
        """Rows and columns of the source that the canvas shows; all of them unless the picture is cut."""
        rows, columns = self.inside
        return (
            _scale_back(rows, self.top, self.scaled[0], self.source[0]),
            _scale_back(columns, self.left, self.scaled[1], self.source[1]),
        )

    def apply(self, frames: UInt8[Tensor, "f h w 3"]) -> UInt8[Tensor, "f rows columns 3"]:
        """Lay pictures of the size `source` on the canvas."""
        assert tuple(frames.shape[1:3]) == self.source
        return self.lay(resize_frames(frames, self.scaled))

    def lay(self, frames: UInt8[Tensor, "f h w 3"]) -> UInt8[Tensor, "f rows columns 3"]:
        """Lay pictures that are scaled already on the canvas."""
        rows, columns = self.inside
        cut = frames[:, rows.start - self.top : rows.stop - self.top]
        cut = cut[:, :, columns.start - self.left : columns.stop - self.left]
        margins = (
            columns.start, self.canvas[1] - columns.stop, rows.start, self.canvas[0] - rows.stop
        )  # fmt: skip
        if not any(margins):
            return cut.contiguous()
        planes = cut.permute(0, 3, 1, 2)
        if self.repeat_edges:
            padded = F.pad(planes.float(), margins, mode="replicate").to(torch.uint8)
        else:
            padded = F.pad(planes, margins)
        return padded.permute(0, 2, 3, 1).contiguous()

    def undo(self, frames: UInt8[Tensor, "f rows columns 3"]) -> UInt8[Tensor, "f h w 3"]:
        """Take the picture off the canvas and back to its own size: the `visible` part of the source.

        Exact, pixel for pixel, where nothing was scaled.
        """
        rows, columns = self.inside
        height, width = (part.stop - part.start for part in self.visible)
        return resize_frames(frames[:, rows, columns], (height, width))


def place(source: Size, size: Size, fit: Fit = "cover", anchor: tuple[float, float] = CENTRE) -> Placement:
    """Decide where a picture lies on a canvas of another size.

    Args:
        source: Height and width of the picture.
        size: Height and width of the canvas.
        fit: "cover" scales until the canvas is full and cuts the rest; "pad" scales until all of the picture
            is visible, with black around; "extend" keeps every pixel and repeats the edges around.
        anchor: Which part is kept, or where the picture lies: from (0, 0), top left, to (1, 1).

    Raises:
        RequestError: A size or the anchor is impossible, or the canvas is too small to extend to.
    """
    _check(source, size, fit, anchor)
    ratios = [canvas / extent for canvas, extent in zip(size, source, strict=True)]
    scale = {"cover": max(ratios), "pad": min(ratios), "extend": 1.0}[fit]
    height, width = (max(round(extent * scale), 1) for extent in source)
    if fit == "cover":  # rounding must not leave a line uncovered
        height, width = max(height, size[0]), max(width, size[1])
    return Placement(
        source=source,
        scaled=(height, width),
        canvas=size,
        top=round((size[0] - height) * anchor[0]),
        left=round((size[1] - width) * anchor[1]),
        repeat_edges=fit == "extend",
    )


def resize_frames(frames: UInt8[Tensor, "f h w 3"], size: Size) -> UInt8[Tensor, "f rows columns 3"]:
    """Scale pictures without aliasing (triangle filter, as wide as a target pixel)."""
    if tuple(frames.shape[1:3]) == size:
        return frames
    pieces = []
    for start in range(0, len(frames), _CHUNK):
        planes = frames[start : start + _CHUNK].permute(0, 3, 1, 2).float()
        scaled = F.interpolate(planes, size, mode="bilinear", antialias=True)
        pieces.append(scaled.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(pieces).contiguous()


def cover_plainly(picture: UInt8[Tensor, "h w 3"], size: Size) -> ExactPicture:
    """Scale a picture until it covers a size and cut the middle out, as the official code does.

    Each pixel is made of the four nearest, however many pixels the picture has, and nothing is rounded:
    what is finer than a pixel of the result becomes jagged edges and moiré. `Placement.apply` averages it.
    """
    height, width = picture.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    scaled = math.ceil(height * scale), math.ceil(width * scale)
    top, left = ((new - wanted) // 2 for new, wanted in zip(scaled, size, strict=True))
    planes = F.interpolate(picture.permute(2, 0, 1)[None].float(), scaled, mode="bilinear")[0]
    return planes[:, top : top + size[0], left : left + size[1]].permute(1, 2, 0).contiguous()


def _scale_back(part: slice, offset: int, scaled: int, source: int) -> slice:
    ratio = source / scaled
    return slice(round((part.start - offset) * ratio), round((part.stop - offset) * ratio))


def _check(source: Size, size: Size, fit: Fit, anchor: tuple[float, float]) -> None:
    if min(source + size) < 1:
        raise RequestError(f"cannot fit {_text(source)} pixels into {_text(size)}; sizes must be positive")
    if not all(0 <= part <= 1 for part in anchor):
        raise RequestError(f"anchor={anchor} is outside [0, 1]; 0.5, 0.5 is the centre")
    if fit == "extend" and (size[0] < source[0] or size[1] < source[1]):
        raise RequestError(
            f"cannot extend {_text(source)} pixels to {_text(size)}; the least is {_text(source)}"
        )


def _text(size: Size) -> str:
    """Write a size as people do: width first."""
    return f"{size[1]}x{size[0]}"
