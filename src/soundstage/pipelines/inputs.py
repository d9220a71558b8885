"""What users write about media: `photo.png@1.5s:0.8`, `2.0-3.5`, `forward=3s`, `64x48`. Free of torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from soundstage.core.config import nearest
from soundstage.core.errors import RequestError

_SECONDS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)s?")
_SIDES = ("left", "right", "top", "bottom")

Direction = Literal["forward", "backward"]


@dataclass(frozen=True)
class Moment:
    """A place in a clip: a frame, counted from the end if negative, or seconds."""

    value: float | int = 0
    unit: Literal["frame", "seconds"] = "frame"

    @classmethod
    def parse(cls, text: str) -> "Moment":
        """Read `12`, `-1`, `last` or `1.5s`.

        Raises:
            RequestError: It is none of these.
        """
        if text == "last":
            return cls(-1)
        if re.fullmatch(r"-?\d+", text):
            return cls(int(text))
        if text.endswith("s") and _SECONDS.fullmatch(text):
            return cls(float(text[:-1]), "seconds")
        raise RequestError(f"moment {text!r} is none of a frame (12, -1), seconds (1.5s) and last")

    def frame(self, num_frames: int, frame_rate: Fraction) -> int:
        """Find the frame in a clip of that length.

        Raises:
            RequestError: It lies outside the clip.
        """
        index = round(Fraction(self.value) * frame_rate) if self.unit == "seconds" else int(self.value)
        found = index + num_frames if index < 0 else index
        if not 0 <= found < num_frames:
            end = float((num_frames - 1) / frame_rate)
            raise RequestError(
                f"moment {self} is outside the clip of {num_frames} frames; "
                f"the last is {num_frames - 1}, at {end:g}s"
            )
        return found

    def __str__(self) -> str:
        return f"{self.value:g}s" if self.unit == "seconds" else str(int(self.value))


@dataclass(frozen=True)
class ImageInput:
    """A picture, or a short clip, that the result is to pass through."""

    path: Path
    when: Moment = Moment()
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "ImageInput":
        """Read `PATH[@WHEN[:STRENGTH]]`; an `@` inside a folder's name is part of the path.

        Raises:
            RequestError: The path is empty, or what follows is malformed.
        """
        path, at, tail = text.rpartition("@")
        if not at or "/" in tail:
            return cls(_path(text, text))
        when, colon, strength = tail.partition(":")
        return cls(_path(path, text), Moment.parse(when), _strength(strength, text) if colon else 1.0)


@dataclass(frozen=True)
class ReferenceInput:
    """A clip to follow without showing it."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "ReferenceInput":
        """Read `PATH[:STRENGTH]`.

        Raises:
            RequestError: The path is empty or the strength is outside [0, 1].
        """
        path, colon, tail = text.rpartition(":")
        if not colon or not re.fullmatch(r"[\d.]+", tail):
            return cls(_path(text, text))
        return cls(_path(path, text), _strength(tail, text))


def parse_span(text: str) -> tuple[float, float]:
    """Read `2.0-3.5`, in seconds.

    Raises:
        RequestError: It is malformed or empty.
    """
    start, dash, end = text.partition("-")
    if not (dash and _SECONDS.fullmatch(start) and _SECONDS.fullmatch(end)):
        raise RequestError(f"span {text!r} is not of the form START-END in seconds, such as 2.0-3.5")
    span = float(start.rstrip("s")), float(end.rstrip("s"))
    if span[0] >= span[1]:
        raise RequestError(f"span {text!r} is empty; its start must be before its end")
    return span


def parse_extension(texts: Sequence[str]) -> dict[Direction, float]:
    """Read `forward=3s`, `backward=2s` or both, in seconds.

    Raises:
        RequestError: One is malformed or given twice.
    """
    found: dict[Direction, float] = {}
    for text in texts:
        direction, equals, seconds = text.partition("=")
        if direction not in ("forward", "backward"):
            near = nearest(direction, ("forward", "backward"))
            raise RequestError(f"extension {text!r} is neither forward=SECONDS nor backward=SECONDS{near}")
        if not (equals and _SECONDS.fullmatch(seconds)) or float(seconds.rstrip("s")) == 0:
            raise RequestError(f"extension {text!r} does not say how many seconds; such as {direction}=3s")
        if direction in found:
            raise RequestError(f"extension {direction} is given twice")
        found[direction] = float(seconds.rstrip("s"))  # type: ignore[index]  # one of the two, see above
    return found


def parse_size(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT`; returns height and width in pixels.

    Raises:
        RequestError: It is malformed.
    """
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise RequestError(f"size={text!r} is not of the form WIDTHxHEIGHT, such as 64x64")
    return int(match[2]), int(match[1])


def parse_canvas(text: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Read where a clip lies in a larger canvas: `96x64`, around its middle, or `left=16,right=16`.

    Returns:
        Pixels that are added at the top, bottom, left and right.

    Raises:
        RequestError: It is malformed, or adds nothing.
    """
    if "=" not in text:
        rows, columns = parse_size(text)
        if rows < height or columns < width or (rows, columns) == (height, width):
            raise RequestError(f"canvas {text} is not larger than the clip, which is {width}x{height}")
        top, left = (rows - height) // 2, (columns - width) // 2
        return top, rows - height - top, left, columns - width - left
    added = dict.fromkeys(_SIDES, 0)
    for part in text.split(","):
        side, _, pixels = part.strip().partition("=")
        if side not in _SIDES or not pixels.isdecimal():
            near = nearest(side, _SIDES)
            raise RequestError(f"canvas {part!r} is not SIDE=PIXELS with a side of {', '.join(_SIDES)}{near}")
        added[side] = int(pixels)
    if not any(added.values()):
        raise RequestError(f"canvas {text!r} adds nothing to the clip")
    return added["top"], added["bottom"], added["left"], added["right"]


def _path(path: str, text: str) -> Path:
    if not path:
        raise RequestError(f"{text!r} names no file")
    return Path(path)


def _strength(text: str, whole: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not 0 <= strength <= 1:
        raise RequestError(f"strength {text!r} of {whole!r} is not a number in [0, 1]; 1 keeps what is given")
    return strength
