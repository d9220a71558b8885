"""What one would say about objects that roll, bounce, collide and hit walls."""

import random
from collections.abc import Sequence

from soundstage.data.world.bounce_caption import (
    FLOOR_WORDS,
    NOUNS,
    PLACE_WORDS,
    SIZE_SHARE,
    SIZE_WORDS,
    SOUND_WORDS,
)
from soundstage.data.world.objects import Action, Body, Objects

TRAVEL_WORDS = {
    "right": ("to the right", "from the left", "to the right"),
    "left": ("to the left", "from the right", "to the left"),
}
THUD_WORDS = ("with a thud", "with a thump")
CLACK_WORDS = ("with a clack", "with a click")
SENTENCES: dict[Action, tuple[str, ...]] = {
    "roll": (
        "{first} rolls {travel} on {floor} and hits a wall",
        "{first} rolls {travel} into a wall on {floor}",
        "{first} rolls into a wall {thud} on {floor}",
        "{first} rolls {travel} and back on {floor}",
        "on {floor}, {first} rolls {travel} against a wall {thud}",
        "{first} rolling between two walls on {floor}",
        "{place}, {first} rolls {travel} on {floor} and hits a wall",
    ),
    "rebound": (
        "{first} bounces {travel} on {floor} and off a wall",
        "{first} bounces on {floor} and hits a wall",
        "{first} bounces {travel} on {floor} and hits the wall {thud}",
        "{first} bouncing between two walls on {floor}",
        "between two walls, {first} bounces {travel} on {floor}",
        "{place}, {first} bounces on {floor} and off a wall",
    ),
    "collide": (
        "{all} collide on {floor}",
        "{all} roll on {floor} and collide",
        "{all} collide {clack} on {floor}",
        "{all} bump into each other on {floor}",
        "on {floor}, {all} collide {clack}",
        "{all} roll and hit each other {clack} on {floor}",
        "{place}, {all} collide on {floor}",
        "{sides} collide on {floor}",
    ),
    "several": (
        "{all} bounce on {floor}",
        "{all} bounce side by side on {floor}",
        "{all} bounce on {floor} {sound}",
        "{all} are bouncing on {floor}",
        "on {floor}, {all} bounce up and down",
        "{all} bounce on {floor} {place}",
        "{sides} bounce on {floor}",
        "{sides} bounce on {floor} {sound}",
    ),
}
HEARD = ("{thud}", "{clack}", "{sound}")


def describe_objects(objects: Objects, rng: random.Random) -> str:
    """Describe objects in one of many wordings, in lower case."""
    return _describe(objects, rng, SENTENCES[objects.action])


def describe_silent_objects(objects: Objects, rng: random.Random) -> str:
    """Describe only what is seen."""
    seen = [one for one in SENTENCES[objects.action] if not any(field in one for field in HEARD)]
    return _describe(objects, rng, seen)


def _describe(objects: Objects, rng: random.Random, sentences: Sequence[str]) -> str:
    names = [_name(body, rng) for body in objects.bodies]
    direction = objects.bodies[0].direction
    return rng.choice(sentences).format(
        first=names[0],
        all=_listed(names),
        sides=_with_sides(objects.bodies, names),
        travel=rng.choice(TRAVEL_WORDS[direction or "right"]),
        floor=rng.choice(FLOOR_WORDS[objects.floor]),
        place=rng.choice(PLACE_WORDS[objects.background]),
        sound=rng.choice(SOUND_WORDS[objects.floor]),
        thud=rng.choice(THUD_WORDS),
        clack=rng.choice(CLACK_WORDS),
    )


def _name(body: Body, rng: random.Random) -> str:
    size = rng.choice(SIZE_WORDS[body.size]) if rng.random() < SIZE_SHARE[body.size] else ""
    bare = " ".join(word for word in (size, body.colour, rng.choice(NOUNS[body.shape])) if word)
    return f"{'an' if bare[0] in 'aeiou' else 'a'} {bare}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _with_sides(bodies: Sequence[Body], names: Sequence[str]) -> str:
    """Say of two objects which is left and which right at the start; of more or fewer only what they are."""
    if len(names) != 2:
        return _listed(names)
    is_left_first = bodies[0].x(0.0) < bodies[1].x(0.0)
    first, second = ("left", "right") if is_left_first else ("right", "left")
    return f"{names[0]} on the {first} and {names[1]} on the {second}"
