"""What every kind of scene has: a subject drawn at random, a picture, a sound, words, and exact events.

A kind is one `SceneKind` in `kinds.KINDS`; the rest of the world knows kinds through it only.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from soundstage.data.world.camera import Camera

if TYPE_CHECKING:
    import torch

    from soundstage.core.types import VideoPixels, Waveform

Split = Literal["train", "held_out"]
Audibility = Literal["normal", "silent", "off-screen"]
What = Literal["impact", "collision", "tick", "strike", "syllable"]

CLIP_SECONDS = 49 / 24  # the training clip
MARGIN_SECONDS = 0.5  # motion keeps its sense this long after the clip
MIN_ASPECT = 0.75  # width over height that gives the largest subject room to move

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 34),
    "orange": (252, 128, 8),
    "yellow": (252, 222, 22),
    "green": (28, 160, 48),
    "cyan": (10, 208, 222),
    "blue": (32, 64, 226),
    "purple": (132, 36, 188),
    "pink": (252, 118, 190),
    "white": (252, 252, 252),
}
"""The colours that captions name."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens at one moment, the exact ground truth of synchrony."""

    time: float  # s
    x: float  # picture heights from the picture's left edge
    y: float  # picture heights from the top
    strength: float  # for an impact its speed in heights/s; else 1 = as strong as it gets
    sound: str  # material, "tick", name of a note, syllable ...
    what: What
    seen: bool = True
    heard: bool = True


@runtime_checkable
class Subject(Protocol):
    """What a kind draws at random: a frozen dataclass of plain data from which all else is computed."""

    @property
    def aspect(self) -> float:
        """Picture width over height."""

    @property
    def camera(self) -> Camera:
        """How it is filmed; `camera.STILL` where the kind knows nothing else."""

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """List the events of the first `duration` seconds in order, with places in the picture."""

    def mirrored(self) -> Any:
        """Swap left and right in picture, sound and caption."""

    def facts(self) -> dict[str, Any]:
        """Ground truth of everything that can be seen or heard, as plain data."""


@runtime_checkable
class Sample(Protocol):
    """Draw a subject of `split` for a clip of `duration` seconds and a picture of `aspect`."""

    def __call__(self, rng: random.Random, /, *, split: Split, duration: float, aspect: float) -> Any:
        """Draw one; the same for the same state of `rng`."""


@runtime_checkable
class Render(Protocol):
    """Draw clips of subjects; frame k shows time k / frame_rate."""

    def __call__(
        self,
        subjects: Sequence[Any],
        /,
        *,
        num_frames: int,
        height: int,
        width: int,
        frame_rate: Fraction | float | int,
        device: "torch.device | str",
    ) -> "VideoPixels":
        """Draw a batch."""


@runtime_checkable
class Synthesise(Protocol):
    """Make the stereo sound of the first `duration` seconds, peak below 0.9, past the clip's end if asked."""

    def __call__(
        self, subjects: Sequence[Any], /, *, duration: float, sample_rate: int, device: "torch.device | str"
    ) -> "Waveform":
        """Play a batch."""


Describe = Callable[[Any, random.Random], str]


@dataclass(frozen=True, kw_only=True)
class SceneKind:
    """One kind of scene, as functions of its subjects."""

    name: str
    weight: float  # how often it is drawn, relative to the others
    sample: Sample
    describe: Describe  # one of several wordings, lower case, without a full stop
    render: Render
    synthesise: Synthesise
    is_held_out: Callable[[Any], bool]  # whether its combination of attributes is kept from training
    describe_silent: Describe | None = None
    """Say only what is seen; " in silence" is added. None: such a scene is never silent."""
    describe_unseen: Describe | None = None
    """Say what the empty picture shows and what is heard. None: such a scene is never off-screen."""
    render_unseen: Render | None = None
    """Draw the place without the subject; needed with `describe_unseen`."""
    takes_layers: bool = True  # whether rain or wind may be laid over it


def held_out(*attributes: str) -> bool:
    """Whether a combination is kept from training: about one in ten, by hash, so that it never changes."""
    return hashlib.sha256(" ".join(attributes).encode()).digest()[0] % 10 == 0


def pan_of(x: float, aspect: float) -> float:
    """Stereo position of a place in the picture: 0 = left edge, 1 = right edge.

    Equal power: the left ear hears cos(pan pi / 2), the right ear sin(pan pi / 2).
    """
    return min(max(x / aspect, 0.0), 1.0)
