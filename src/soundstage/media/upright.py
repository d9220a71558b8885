"""Decoded frames as a viewer sees them: upright, square pixels, ordinary range, opaque, at a size."""

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from soundstage.media.placement import CENTRE, Fit, Placement, Size, place, resize_frames
from soundstage.media.tone import Transfer, to_sdr

_TRANSFERS: dict[int, Transfer] = {16: "pq", 18: "hlg"}  # codes of ITU-T H.273, table 3
_MATRICES = {
    1: "ITU709",
    4: "FCC",
    5: "ITU601",
    6: "ITU601",
    7: "SMPTE240M",
    9: "BT2020",
    10: "BT2020",
}  # H.273
_HD_HEIGHT = 720  # from here on an untagged picture is taken for BT.709, below for BT.601, as players do

Matrix = tuple[int, int, int, int]  # a, b, c, d of x' = a x + c y, y' = b x + d y, each -1, 0 or 1
UPRIGHT: Matrix = (1, 0, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What has to be done to the stored frames of a stream before they are looked at."""

    stored: Size
    pixel_aspect: Fraction  # width : height of a stored pixel
    matrix: Matrix
    transfer: Transfer
    has_alpha: bool
    bit_depth: int

    @classmethod
    def of(cls, frame: Any, pixel_aspect: Fraction | None) -> "Look":
        """Read it from a decoded frame and the stream's pixel aspect."""
        return cls(
            stored=(frame.height, frame.width),
            pixel_aspect=pixel_aspect or Fraction(1),
            matrix=orientation(frame),
            transfer=_TRANSFERS.get(int(frame.color_trc), "sdr"),
            has_alpha=has_alpha(frame.format),
            bit_depth=max(component.bits for component in frame.format.components),
        )

    @property
    def turned(self) -> bool:
        """Whether rows become columns."""
        return self.matrix[0] == 0

    @cached_property
    def size(self) -> Size:
        """Height and width as shown; the stored height is kept and the width follows the pixels' shape."""
        height, width = self.stored[0], max(round(self.stored[1] * self.pixel_aspect), 1)
        return (width, height) if self.turned else (height, width)

    @property
    def rotation(self) -> int:
        """Degrees, counter-clockwise, by which the stored picture is turned to be upright."""
        a, b, _, _ = self.matrix
        return round(math.degrees(math.atan2(-b, a))) % 360

    @property
    def display_matrix(self) -> tuple[int, ...]:
        """The matrix as files have it: fixed point, rows of three, with the shift that keeps it in sight."""
        a, b, c, d = (part << 16 for part in self.matrix)
        return a, b, 0, c, d, 0, 0, 0, 1 << 30


class Converter:
    """Turns decoded frames into 8-bit RGB at a size; scales first, so that few pixels are converted."""

    def __init__(
        self, look: Look, size: Size | None, fit: Fit = "cover", anchor: tuple[float, float] = CENTRE
    ) -> None:
        self.look = look
        self.placement: Placement = place(look.size, size or look.size, fit, anchor)

    def __call__(self, frame: Any) -> UInt8[Tensor, "rows columns 3"]:
        """Convert one frame; frames that change their stored size within a clip are scaled to the first's."""
        scaled = self.placement.scaled
        stored = scaled[::-1] if self.look.turned else scaled
        if self.look.transfer != "sdr":
            picture = to_sdr(_read(frame, "rgb48le", stored).float() / 65535, self.look.transfer)
        elif self.look.has_alpha:
            picture = resize_frames(over_black(_read(frame, "rgba", None))[None], stored)[0]
        else:
            picture = _read(frame, "rgb24", stored)
        return self.placement.lay(turn(picture, self.look.matrix)[None])[0]


def over_black(picture: UInt8[Tensor, "h w 4"]) -> UInt8[Tensor, "h w 3"]:
    """Lay a picture with transparency over black."""
    alpha = picture[..., 3:].float() / 255
    return (picture[..., :3].float() * alpha).round_().to(torch.uint8)


def turn(picture: UInt8[Tensor, "h w 3"], matrix: Matrix) -> UInt8[Tensor, "h2 w2 3"]:
    """Turn and mirror a picture by quarter turns."""
    a, b, c, d = matrix
    if a == 0:
        picture = picture.transpose(0, 1)
    flips = [axis for axis, factor in ((0, b + d), (1, a + c)) if factor < 0]
    return picture.flip(flips).contiguous() if flips else picture.contiguous()


def unturn(picture: UInt8[Tensor, "h w 3"], matrix: Matrix) -> UInt8[Tensor, "h2 w2 3"]:
    """Turn an upright picture as it was stored; the inverse of `turn`."""
    a, b, c, d = matrix
    flips = [axis for axis, factor in ((0, b + d), (1, a + c)) if factor < 0]
    picture = picture.flip(flips) if flips else picture
    return (picture.transpose(0, 1) if a == 0 else picture).contiguous()


def orientation(frame: Any) -> Matrix:
    """Read the display matrix of a frame, rounded to quarter turns; mirrored pictures are mirrored back."""
    from av.sidedata.sidedata import Type

    side = frame.side_data.get(Type.DISPLAYMATRIX)
    if side is None:
        return UPRIGHT
    a, b, _, c, d = struct.unpack("<5i", bytes(side)[:20])  # 16.16 fixed point, rows of three
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def colour_matrix(frame: Any) -> Any:
    """Say by which matrix a frame's luma and chroma were made."""
    from av.video.reformatter import Colorspace

    guess = "ITU709" if frame.height >= _HD_HEIGHT else "ITU601"
    return Colorspace[_MATRICES.get(int(frame.colorspace), guess)]


def has_alpha(pixel_format: Any) -> bool:
    """Tell whether a pixel format carries transparency; a palette may."""
    return bool(pixel_format.has_palette or any(part.is_alpha for part in pixel_format.components))


def _read(frame: Any, pixel_format: str, size: Size | None) -> Tensor:
    """Convert a frame with the colour matrix it was made with, scaled without aliasing."""
    from av.video.reformatter import Interpolation

    height, width = size or (frame.height, frame.width)
    same = (height, width) == (frame.height, frame.width)
    converted = frame.reformat(
        width=width,
        height=height,
        format=pixel_format,
        src_colorspace=colour_matrix(frame),
        interpolation=Interpolation.BILINEAR if same else Interpolation.BICUBIC,
    )
    array = converted.to_ndarray()
    return torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.int32))
