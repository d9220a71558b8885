"""Something bounces on a floor: what there is to see and hear, as plain data."""

import math
import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from soundstage.core.errors import RequestError
from soundstage.data.world.camera import STILL, Camera
from soundstage.data.world.kind import (
    CLIP_SECONDS,
    COLOURS,
    MARGIN_SECONDS,
    MIN_ASPECT,
    Event,
    Split,
    held_out,
    pan_of,
)
from soundstage.data.world.motion import Motion

Direction = Literal["right", "left", "down"]

SHAPES: dict[str, float] = {"ball": 1.0, "cube": 0.86, "pyramid": 0.72, "star": 0.88, "ring": 1.0}
"""Shape to the distance from its centre to its lowest point, in radii."""
SIZES: dict[str, float] = {"small": 0.128, "medium": 0.165, "large": 0.205}
"""Size to radius, in picture heights: 8.2, 10.6 and 13.1 pixels of 64."""
FLOORS = ("wood", "metal", "glass", "drum")
BACKGROUNDS = ("sky", "dusk", "night", "wall", "studio", "mint")

FLOOR_TOP = 0.77  # y where the floor begins
GROUND = 0.86  # y of the line of contact, a little way into the floor
CEILING = 0.02  # y that the object's upper end never passes


@dataclass(frozen=True, kw_only=True)
class Bounce:
    """One object that bounces on one floor."""

    colour: str
    shape: str
    size: str
    floor: str
    background: str
    motion: Motion
    aspect: float  # picture width over height; the motion is in the world, `camera.extent` wider
    tint: tuple[float, float, float]  # added to the background's RGB in [0, 1]
    shade: float  # factor on the floor's brightness
    texture: float  # in [0, 1), shifts planks, clouds and highlights
    detune: float  # factor on the pitch, close to 1
    noise: int  # where in a bank of noise the sound of a contact begins
    flipped: bool = False  # whether background and floor are drawn mirrored
    camera: Camera = STILL

    @classmethod
    def from_seed(
        cls,
        seed: int,
        split: Split = "train",
        *,
        duration: float = CLIP_SECONDS,
        aspect: float = 1.0,
    ) -> "Bounce":
        """Draw the scene that `seed` stands for in `split`; the same on every machine."""
        return sample_bounce(random.Random(f"{split}:{seed}"), split=split, duration=duration, aspect=aspect)

    @property
    def radius(self) -> float:
        """Half extent of the object in picture heights."""
        return SIZES[self.size]

    @property
    def direction(self) -> Direction:
        """Which way the object drifts."""
        if self.motion.velocity_x == 0:
            return "down"
        return "right" if self.motion.velocity_x > 0 else "left"

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Every impact in order, those after the end of the clip included."""
        return tuple(
            Event(
                time=impact.time,
                x=impact.x - self.camera.offset(impact.time),
                y=impact.y,
                strength=impact.speed,
                sound=self.floor,
                what="impact",
            )
            for impact in self.motion.impacts
        )

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """Impacts within the first `duration` seconds."""
        return tuple(event for event in self.events if event.time < duration)

    def pan(self, x: float) -> float:
        """Stereo position of a place: 0 = left edge, 1 = right edge."""
        return pan_of(x, self.aspect)

    def mirrored(self) -> "Bounce":
        """Swap left and right in picture, sound and, through `direction`, caption."""
        low, high = self.motion.reach
        world = self.aspect + self.camera.extent
        motion = replace(
            self.motion,
            start_x=world - self.motion.start_x,
            velocity_x=-self.motion.velocity_x if self.motion.velocity_x else 0.0,
            reach=(world - high, world - low),
        )
        return replace(self, motion=motion, flipped=not self.flipped, camera=self.camera.mirrored())

    def facts(self) -> dict[str, Any]:
        """Ground truth for people and for evaluation."""
        return {
            "colour": self.colour,
            "shape": self.shape,
            "size": self.size,
            "floor": self.floor,
            "background": self.background,
            "direction": self.direction,
        }


def is_held_out(colour: str, shape: str, floor: str) -> bool:
    """Whether a combination is kept from training: about one in ten, by hash, so that it never changes."""
    return held_out("a", colour, shape, floor)


def sample_bounce(
    rng: random.Random,
    *,
    split: Split = "train",
    duration: float = CLIP_SECONDS,
    aspect: float = 1.0,
) -> Bounce:
    """Draw a scene whose colour, shape and floor belong to `split`.

    Args:
        duration: Length of the clip in seconds; the object stays in the picture a little longer.
        aspect: Picture width over height, at least `MIN_ASPECT`.
    """
    if duration <= 0:
        raise RequestError(f"duration={duration} should be positive, such as {CLIP_SECONDS:.2f} seconds")
    if aspect < MIN_ASPECT:
        raise RequestError(
            f"aspect={aspect:.2f} (width over height) is below {MIN_ASPECT}; use a wider picture"
        )
    while True:
        colour, shape, floor = rng.choice(list(COLOURS)), rng.choice(list(SHAPES)), rng.choice(FLOORS)
        if is_held_out(colour, shape, floor) == (split == "held_out"):
            break
    size = rng.choice(list(SIZES))
    return Bounce(
        colour=colour,
        shape=shape,
        size=size,
        floor=floor,
        background=rng.choice(BACKGROUNDS),
        motion=_sample_motion(rng, SIZES[size], SHAPES[shape], duration, aspect),
        aspect=aspect,
        tint=(rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)),
        shade=rng.uniform(0.92, 1.06),
        texture=rng.random(),
        detune=rng.uniform(0.97, 1.03),
        noise=rng.randrange(1 << 20) + rng.randrange(1 << 20),
        flipped=rng.random() < 0.5,
    )


def _sample_motion(rng: random.Random, radius: float, foot: float, duration: float, aspect: float) -> Motion:
    """Draw a bounce of 2 to 6 impacts in a training clip, under the ceiling and between the edges."""
    room = GROUND - CEILING - radius * (1 + foot)
    margin = radius * 1.12
    travel = rng.choice((1, 1, -1, -1, 0)) * rng.uniform(0.6, 1.0) * (aspect - 2 * margin)
    while True:
        gravity = rng.uniform(3.5, 6.0)
        speed = math.sqrt(2 * gravity * room * rng.uniform(0.6, 1.0))
        vertical = Motion(
            gravity=gravity,
            restitution=rng.uniform(0.6, 0.85),
            first_impact=rng.uniform(0.12, min(0.8, 1.6 * speed / gravity)),
            first_speed=speed,
            start_x=aspect / 2,
            velocity_x=0.0,
            ground=GROUND,
            foot=radius * foot,
            reach=(margin, aspect - margin),
        )
        if 2 <= sum(impact.time < CLIP_SECONDS for impact in vertical.impacts) <= 6:
            break
    if travel == 0:
        return replace(vertical, start_x=rng.uniform(margin, aspect - margin))
    low, high = (margin, aspect - margin - travel) if travel > 0 else (margin - travel, aspect - margin)
    seconds = min(duration + MARGIN_SECONDS, vertical.rest_time + MARGIN_SECONDS)
    return replace(vertical, start_x=rng.uniform(low, high), velocity_x=travel / seconds)


PAN_SHARE = 0.12  # of bounces are filmed by a moving camera


def sample_filmed_bounce(rng: random.Random, *, split: Split, duration: float, aspect: float) -> Bounce:
    """Draw a bounce, sometimes filmed by a camera that pans.

    The camera pans the way the object drifts, or either way past one that bounces in one place, so that left
    and right mean the same in the world and in the picture.
    """
    plain = sample_bounce(rng, split=split, duration=duration, aspect=aspect)
    if rng.random() >= PAN_SHARE:
        return plain
    seconds = duration + MARGIN_SECONDS
    turn = rng.choice(("left", "right")) if plain.direction == "down" else plain.direction
    camera = Camera(turn="left" if turn == "left" else "right", seconds=seconds)
    speed = camera.extent / seconds * (-1 if turn == "left" else 1)
    margin = plain.radius * 1.12
    motion = replace(plain.motion, reach=(margin, aspect + camera.extent - margin))
    if plain.direction == "down":
        low, high = camera.extent + margin, aspect - margin
        if low > high:
            return plain  # no place stays in so narrow a picture
        motion = replace(motion, start_x=rng.uniform(low, high))
    else:
        start = motion.start_x + camera.offset(0.0)
        motion = replace(motion, start_x=start, velocity_x=motion.velocity_x + speed)
        last = motion.x(seconds) - camera.offset(seconds)
        if not margin <= last <= aspect - margin:
            return plain  # it would come to rest and be left behind
    return replace(plain, motion=motion, camera=camera)
