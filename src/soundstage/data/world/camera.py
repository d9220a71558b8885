"""How the world is filmed: from one place, or turning slowly to one side.

The world of a clip is wider than the picture by the camera's `extent`; the picture shows the part from
`offset` on. Places in the world and in the picture are in picture heights from the left edge of each.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

Turn = Literal["still", "left", "right"]

PAN_EXTENT = 0.3  # picture heights that a pan reveals: 19 of 64 pixels, 0.3 a frame in a training clip
CAMERA_WORDS: dict[Turn, tuple[str, ...]] = {
    "still": (),
    "right": ("as the camera pans right", "the camera pans to the right", "the camera moves right"),
    "left": ("as the camera pans left", "the camera pans to the left", "the camera moves left"),
}
"""Wordings; left and right stand at the same place of their rows."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera that stands or pans at a constant speed from time 0 until `seconds`."""

    turn: Turn = "still"
    seconds: float = 1.0  # of the whole pan

    @property
    def extent(self) -> float:
        """How much wider the world is than the picture."""
        return 0.0 if self.turn == "still" else PAN_EXTENT

    def offset(self, time: float) -> float:
        """Where in the world the picture's left edge is."""
        share = min(max(time / self.seconds, 0.0), 1.0)
        return self.extent * (1 - share if self.turn == "left" else share)

    def mirrored(self) -> "Camera":
        """Pan to the other side."""
        turns: dict[Turn, Turn] = {"still": "still", "left": "right", "right": "left"}
        return replace(self, turn=turns[self.turn])


STILL = Camera()


def world_width(height: int, width: int) -> int:
    """Pixels to draw of a world that a moving camera films in pictures of `height` x `width`."""
    return width + math.ceil(PAN_EXTENT * height)
