"""One to three objects that roll, bounce, meet each other and hit walls, all at times known from formulas."""

import bisect
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from soundstage.data.world.bounce import (
    BACKGROUNDS,
    CEILING,
    FLOORS,
    GROUND,
    SHAPES,
    SIZES,
    is_held_out,
)
from soundstage.data.world.camera import STILL, Camera
from soundstage.data.world.kind import CLIP_SECONDS, COLOURS, MARGIN_SECONDS, Event, Split, pan_of
from soundstage.data.world.motion import Motion, Pose

Action = Literal["roll", "rebound", "collide", "several"]
Side = Literal["left", "right"]
Look = tuple[str, str, str]  # colour, shape, size

ACTIONS: dict[Action, float] = {"roll": 1.0, "rebound": 1.0, "collide": 2.0, "several": 2.0}
"""What happens to how often: one rolls into a wall, one bounces off a wall, two or three that roll collide,
two or three bounce side by side."""
ROUND = ("ball", "ring")
"""Shapes that roll, and that meet each other and walls at their radius."""
WALL = 0.10  # picture heights; how wide a wall is
WALL_RESTITUTION = 0.8  # speed after a wall over speed before
APART = 0.045  # s between any two events of a clip, so that they can be told apart
ATTEMPTS = 60  # to draw motion for given objects
FIRST, LAST = 0.2, 1.5  # s between which the first contact with a wall or each other lies


@dataclass(frozen=True)
class Knot:
    """From `time` on the centre moves at constant `velocity` from `x`."""

    time: float
    x: float
    velocity: float


@dataclass(frozen=True, kw_only=True)
class Body:
    """One object and its way."""

    colour: str
    shape: str
    size: str
    knots: tuple[Knot, ...]  # the first at time 0
    bounce: Motion | None = None  # its ups and downs; None = it rolls

    @property
    def radius(self) -> float:
        """Half extent in picture heights."""
        return SIZES[self.size]

    @property
    def foot(self) -> float:
        """From the centre to the lowest point."""
        return SHAPES[self.shape] * self.radius

    def x(self, time: float) -> float:
        """Horizontal position of the centre."""
        knot = self.knots[max(bisect.bisect_right(self.knots, time, key=lambda knot: knot.time) - 1, 0)]
        return knot.x + knot.velocity * (time - knot.time)

    def pose(self, time: float) -> Pose:
        """Position of the centre and squash."""
        x = self.x(time)
        if self.bounce is None:
            return Pose(x=x, y=GROUND - self.foot, squash=0.0)
        return replace(self.bounce.pose(time), x=x)

    @property
    def direction(self) -> Side | None:
        """Which way it sets out."""
        velocity = self.knots[0].velocity
        return None if velocity == 0 else "right" if velocity > 0 else "left"

    def mirrored(self, aspect: float) -> "Body":
        """Swap left and right."""
        knots = tuple(
            Knot(knot.time, aspect - knot.x, -knot.velocity if knot.velocity else 0.0) for knot in self.knots
        )
        return replace(self, knots=knots)


@dataclass(frozen=True, kw_only=True)
class Contact:
    """Something that sounds, with which bodies make it."""

    event: Event
    bodies: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects on one floor, perhaps between walls."""

    action: Action
    bodies: tuple[Body, ...]
    walls: tuple[Side, ...]
    sideways: tuple[Contact, ...]  # contacts with walls and each other
    floor: str
    background: str
    aspect: float
    tint: tuple[float, float, float]  # added to the background's RGB in [0, 1]
    shade: float  # factor on the floor's brightness
    texture: float  # in [0, 1), shifts planks, clouds and highlights
    detune: float  # factor on the pitch, close to 1
    noise: int  # where in a bank of noise the sound of a contact begins
    flipped: bool = False  # whether background and floor are drawn mirrored

    @property
    def camera(self) -> Camera:
        """It stands."""
        return STILL

    @cached_property
    def contacts(self) -> tuple[Contact, ...]:
        """All that sounds, in order."""
        impacts = [
            Contact(
                event=Event(
                    time=impact.time,
                    x=body.x(impact.time),
                    y=GROUND,
                    strength=impact.speed,
                    sound=self.floor,
                    what="impact",
                ),
                bodies=(index,),
            )
            for index, body in enumerate(self.bodies)
            if body.bounce is not None
            for impact in body.bounce.impacts
        ]
        return tuple(sorted([*impacts, *self.sideways], key=lambda contact: contact.event.time))

    def contacts_before(self, duration: float) -> tuple[Contact, ...]:
        """Contacts within the first `duration` seconds."""
        return tuple(contact for contact in self.contacts if contact.event.time < duration)

    def events_before(self, duration: float) -> tuple[Event, ...]:
        """Events within the first `duration` seconds."""
        return tuple(contact.event for contact in self.contacts_before(duration))

    def pan(self, x: float) -> float:
        """Stereo position of a place: 0 = left edge, 1 = right edge."""
        return pan_of(x, self.aspect)

    def mirrored(self) -> "Objects":
        """Swap left and right in picture, sound and caption."""
        other: dict[Side, Side] = {"left": "right", "right": "left"}
        return replace(
            self,
            bodies=tuple(body.mirrored(self.aspect) for body in self.bodies),
            walls=tuple(other[side] for side in self.walls),
            sideways=tuple(
                replace(contact, event=replace(contact.event, x=self.aspect - contact.event.x))
                for contact in self.sideways
            ),
            flipped=not self.flipped,
        )

    def facts(self) -> dict[str, Any]:
        """Ground truth for people and for evaluation."""
        return {
            "action": self.action,
            "floor": self.floor,
            "background": self.background,
            "walls": list(self.walls),
            "objects": [
                {
                    "colour": body.colour,
                    "shape": body.shape,
                    "size": body.size,
                    "direction": body.direction,
                    "x": round(body.x(0.0), 4),
                }
                for body in self.bodies
            ],
        }


def is_held_out_objects(objects: Objects) -> bool:
    """Whether any object stands with its floor in a combination that is kept from training."""
    return any(is_held_out(body.colour, body.shape, objects.floor) for body in objects.bodies)


def sample_objects(rng: random.Random, *, split: Split, duration: float, aspect: float) -> Objects:
    """Draw objects of which none, or at least one, is in a held-out combination."""
    while True:
        action = rng.choices(tuple(ACTIONS), tuple(ACTIONS.values()))[0]
        floor = rng.choice(FLOORS)
        looks = _draw_looks(rng, action, aspect)
        kept = any(is_held_out(colour, shape, floor) for colour, shape, _ in looks)
        if kept != (split == "held_out"):
            continue
        for _ in range(ATTEMPTS):  # some looks leave no room for what should happen
            objects = _draw(rng, action, looks, floor, duration + MARGIN_SECONDS, aspect)
            if _is_clear(objects, duration):
                return objects


def _draw_looks(rng: random.Random, action: Action, aspect: float) -> list[Look]:
    count = 1 if action in ("roll", "rebound") else rng.choice((2, 2, 2, 3)) if aspect >= 1 else 2
    shapes = tuple(SHAPES) if action == "several" else ROUND
    sizes = tuple(SIZES)[: 1 if count == 3 else 2 if action == "collide" else 3]
    colours = rng.sample(tuple(COLOURS), count)
    return [(colour, rng.choice(shapes), rng.choice(sizes)) for colour in colours]


def _draw(
    rng: random.Random, action: Action, looks: Sequence[Look], floor: str, seconds: float, aspect: float
) -> Objects:
    count = len(looks)
    walls: tuple[Side, ...] = ()
    if action == "several":
        bodies = [
            Body(
                colour=colour,
                shape=shape,
                size=size,
                knots=(Knot(0.0, (lane + rng.uniform(0.46, 0.54)) * aspect / count, 0.0),),
                bounce=_ups_and_downs(rng, SIZES[size], SHAPES[shape]),
            )
            for lane, (colour, shape, size) in enumerate(looks)
        ]
        sideways: list[Contact] = []
    else:
        walls = _walls(rng, action, count)
        starts = _starts(rng, action, looks, WALL if walls else 0.0, aspect)
        bodies, sideways = _collide(looks, starts, walls, seconds, aspect)
        if action == "rebound":
            _, shape, size = looks[0]
            bounce = _ups_and_downs(rng, SIZES[size], SHAPES[shape])
            bodies, sideways = _airborne(bodies[0], sideways, bounce)
    return Objects(
        action=action,
        bodies=tuple(bodies),
        walls=walls,
        sideways=tuple(sideways),
        floor=floor,
        background=rng.choice(BACKGROUNDS),
        aspect=aspect,
        tint=(rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)),
        shade=rng.uniform(0.92, 1.06),
        texture=rng.random(),
        detune=rng.uniform(0.97, 1.03),
        noise=rng.randrange(1 << 20),
        flipped=rng.random() < 0.5,
    )


def _walls(rng: random.Random, action: Action, count: int) -> tuple[Side, ...]:
    if action == "collide" and (count > 2 or rng.random() < 0.5):
        return ()
    return ("left", "right")


def _ups_and_downs(rng: random.Random, radius: float, foot: float) -> Motion:
    """Draw a bounce in one place."""
    room = GROUND - CEILING - radius * (1 + foot)
    gravity = rng.uniform(3.5, 6.0)
    speed = math.sqrt(2 * gravity * room * rng.uniform(0.6, 1.0))
    return Motion(
        gravity=gravity,
        restitution=rng.uniform(0.6, 0.85),
        first_impact=rng.uniform(0.12, min(0.8, 1.6 * speed / gravity)),
        first_speed=speed,
        start_x=0.0,
        velocity_x=0.0,
        ground=GROUND,
        foot=radius * foot,
        reach=(0.0, 0.0),
    )


def _starts(
    rng: random.Random, action: Action, looks: Sequence[Look], edge: float, aspect: float
) -> list[tuple[float, float]]:
    """Draw the place and velocity of each object; two that meet come from both sides, or one stands still."""
    count = len(looks)
    if action != "collide":
        toward = rng.choice((-1, 1))
        room = aspect / 2 - edge - SIZES[looks[0][2]] - 0.02
        return [(aspect / 2 - toward * rng.uniform(-0.2, 1.0) * room, toward * rng.uniform(0.30, 0.75))]
    first, last = SIZES[looks[0][2]] + edge + 0.02, aspect - SIZES[looks[-1][2]] - edge - 0.02
    places = [first + (last - first) * index / (count - 1) for index in range(count)]
    speeds = [0.0] * count
    speeds[0] = rng.uniform(0.25, 0.7)
    speeds[-1] = -rng.choice((0.0, rng.uniform(0.2, 0.6)))
    if rng.random() < 0.5:
        speeds = [-speed for speed in reversed(speeds)]
    return [(place, speed if speed else 0.0) for place, speed in zip(places, speeds, strict=True)]


def _collide(
    looks: Sequence[Look],
    starts: Sequence[tuple[float, float]],
    walls: tuple[Side, ...],
    seconds: float,
    aspect: float,
) -> tuple[list[Body], list[Contact]]:
    """Move objects in a row from contact to contact: elastic with each other, less so with walls.

    Mass goes with the area. Two discs on one floor touch when their centres are 2 sqrt(r s) apart sideways.
    """
    radii = [SIZES[size] for _, _, size in looks]
    x, v = [place for place, _ in starts], [speed for _, speed in starts]
    knots = [[Knot(0.0, place, speed)] for place, speed in starts]
    contacts: list[Contact] = []
    time = 0.0
    low, high = WALL, aspect - WALL

    def next_contact() -> tuple[float, int, int]:
        """Seconds until it, with two neighbours or an object and -1."""
        options = [(math.inf, 0, -1)]
        for one, other in itertools.pairwise(range(len(x))):
            closing = v[one] - v[other]
            if closing > 1e-9:
                gap = x[other] - x[one] - 2 * math.sqrt(radii[one] * radii[other])
                options.append((max(gap, 0.0) / closing, one, other))
        if "right" in walls and v[-1] > 1e-9:
            options.append((max(high - radii[-1] - x[-1], 0.0) / v[-1], len(x) - 1, -1))
        if "left" in walls and v[0] < -1e-9:
            options.append((max(x[0] - radii[0] - low, 0.0) / -v[0], 0, -1))
        return min(options)

    while True:
        wait, one, other = next_contact()
        time += wait
        if time > seconds:
            break
        x = [place + speed * wait for place, speed in zip(x, v, strict=True)]
        y = GROUND - radii[one]
        if other < 0:
            side = 1 if v[one] > 0 else -1
            event = Event(
                time=time,
                x=x[one] + side * radii[one],
                y=y,
                strength=abs(v[one]),
                sound="thud",
                what="impact",
            )
            v[one] *= -WALL_RESTITUTION
            touched: tuple[int, ...] = (one,)
        else:
            masses = radii[one] ** 2, radii[other] ** 2
            closing = v[one] - v[other]
            share = radii[one] / (radii[one] + radii[other])
            event = Event(
                time=time,
                x=x[one] + share * (x[other] - x[one]),
                y=y + share * (radii[one] - radii[other]),
                strength=closing,
                sound="clack",
                what="collision",
            )
            push = 2 * closing / sum(masses)
            v[one], v[other] = v[one] - push * masses[1], v[other] + push * masses[0]
            touched = (one, other)
        contacts.append(Contact(event=event, bodies=touched))
        for index in touched:
            knots[index].append(Knot(time, x[index], v[index]))
    bodies = [
        Body(colour=colour, shape=shape, size=size, knots=tuple(way))
        for (colour, shape, size), way in zip(looks, knots, strict=True)
    ]
    return bodies, contacts


def _airborne(body: Body, contacts: Sequence[Contact], bounce: Motion) -> tuple[list[Body], list[Contact]]:
    """Let an object bounce on its way between the walls and stand still once it has come to rest."""
    rest = bounce.rest_time
    knots = tuple(knot for knot in body.knots if knot.time < rest)
    knots = (*knots, Knot(rest, body.x(rest), 0.0))
    flying = replace(body, knots=knots, bounce=bounce)
    kept = [
        replace(contact, event=replace(contact.event, y=flying.pose(contact.event.time).y))
        for contact in contacts
        if contact.event.time < rest
    ]
    return [flying], kept


def _is_clear(objects: Objects, duration: float) -> bool:
    """Whether what matters happens soon, and no two contacts are too close to tell apart."""
    times = [event.time for event in objects.events_before(max(duration, CLIP_SECONDS))]
    if any(later - earlier < APART for earlier, later in itertools.pairwise(times)):
        return False
    if objects.action == "several":
        return all(
            body.bounce is not None and body.bounce.impacts[1].time < CLIP_SECONDS - 0.2
            for body in objects.bodies
        )
    what = "collision" if objects.action == "collide" else "impact"
    firsts = [contact.event.time for contact in objects.sideways if contact.event.what == what]
    return bool(firsts) and FIRST <= firsts[0] <= LAST and objects.sideways[0].event.what == what
