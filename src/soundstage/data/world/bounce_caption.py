"""What one would say about a scene: several wordings that never mention what cannot be seen or heard."""

import random
from collections.abc import Sequence

from soundstage.data.world.bounce import Bounce
from soundstage.data.world.camera import CAMERA_WORDS

NOUNS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "sphere"),
    "cube": ("cube", "block", "square"),
    "pyramid": ("pyramid", "triangle"),
    "star": ("star",),
    "ring": ("ring", "hoop"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little"),
    "medium": ("medium",),
    "large": ("large", "big"),
}
FLOOR_WORDS: dict[str, tuple[str, ...]] = {
    "wood": ("a wooden floor", "a wooden floor", "wooden boards", "a wood floor"),
    "metal": ("a metal floor", "a metal floor", "a metal plate", "a steel floor"),
    "glass": ("a glass floor", "a glass floor", "a glass plate", "a sheet of glass"),
    "drum": ("a drum", "a drum", "a big drum", "a drum skin"),
}
SOUND_WORDS: dict[str, tuple[str, ...]] = {
    "wood": ("with a dull knock", "with a wooden knock", "knocking"),
    "metal": ("with a metallic clang", "with a clang", "ringing"),
    "glass": ("with a bright clink", "with a clink", "clinking"),
    "drum": ("with a deep thump", "with a boom", "drumming"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "sky": ("under a pale sky", "outside by day"),
    "dusk": ("at dusk", "at sunset"),
    "night": ("at night", "under the stars"),
    "wall": ("in front of a beige wall", "in a room"),
    "studio": ("in front of a grey wall", "in a studio"),
    "mint": ("in front of a pale green wall", "in a green room"),
}
# Left and right stand at the same place of their rows: a mirrored scene gets the mirrored sentence.
TRAVEL_WORDS: dict[str, tuple[str, ...]] = {
    "right": ("from left to right", "to the right", "from the left"),
    "left": ("from right to left", "to the left", "from the right"),
    "down": ("straight up and down", "in one place", "straight down"),
}
ENTRY_WORDS: dict[str, tuple[str, ...]] = {
    "right": ("from the left", "coming from the left", "moving to the right"),
    "left": ("from the right", "coming from the right", "moving to the left"),
    "down": ("straight down", "from above", "straight down"),
}

SENTENCES = (
    "{subject} bounces on {floor}",
    "{subject} bounces on {floor}",
    "{subject} bounces on {floor} {sound}",
    "{subject} bounces {travel} on {floor}",
    "{subject} bounces {travel} on {floor}",
    "{subject} is bouncing {travel} on {floor}",
    "{subject} is bouncing on {floor}, {travel}",
    "{subject} falls {entry} and bounces on {floor}",
    "{subject} drops {entry} onto {floor}",
    "{subject} drops onto {floor} {sound}",
    "{subject} hits {floor} {sound}",
    "{subject} bounces {travel} on {floor} {sound}",
    "{subject} lands on {floor} and bounces {travel}",
    "{subject} lands {entry} on {floor} {sound}",
    "{subject} hops {travel} on {floor}",
    "{subject} bouncing {travel} on {floor}, {place}",
    "{subject} bounces on {floor} {place}",
    "{place}, {subject} bounces {travel} on {floor}",
    "on {floor}, {subject} bounces {travel}",
    "a clip of {subject} bouncing on {floor}",
    "a clip of {subject} bouncing {travel} on {floor} {sound}",
)
TERSE = (
    "{bare}, {material}",
    "{bare} on {material}",
    "{bare}, {material}, {travel}",
    "{bare}, {material}, {sound}",
    "{material}: {bare} {travel}",
)
TERSE_SHARE = 0.15
SIZE_SHARE: dict[str, float] = {"small": 0.6, "medium": 0.3, "large": 0.6}


UNSEEN = (
    "an empty place, {floor}; {something} bounces out of sight",
    "{floor} with nothing on it, {something} bounces out of sight",
    "nothing but {floor}; {something} is heard bouncing {sound}",
    "empty, {floor}; off screen, {something} bounces {sound}",
    "{place}, {floor}; out of sight, {something} bounces",
)
CAMERA_SHARE = 0.7  # of the captions of scenes with a moving camera mention it


def describe_bounce(scene: Bounce, rng: random.Random) -> str:
    """Describe a scene in one of many wordings, in lower case."""
    return _describe(scene, rng, heard=True)


def describe_silent_bounce(scene: Bounce, rng: random.Random) -> str:
    """Describe only what is seen."""
    return _describe(scene, rng, heard=False)


def describe_unseen_bounce(scene: Bounce, rng: random.Random) -> str:
    """Describe the empty place and what is heard: a size, which is a pitch, but neither colour nor shape."""
    size = rng.choice(SIZE_WORDS[scene.size]) if rng.random() < SIZE_SHARE[scene.size] else ""
    return rng.choice(UNSEEN).format(
        floor=rng.choice(FLOOR_WORDS[scene.floor]),
        something=f"something {size}" if size else "something",
        sound=rng.choice(SOUND_WORDS[scene.floor]),
        place=rng.choice(PLACE_WORDS[scene.background]),
    )


def _describe(scene: Bounce, rng: random.Random, *, heard: bool) -> str:
    size = rng.choice(SIZE_WORDS[scene.size]) if rng.random() < SIZE_SHARE[scene.size] else ""
    bare = " ".join(word for word in (size, scene.colour, rng.choice(NOUNS[scene.shape])) if word)
    templates: Sequence[str] = TERSE if rng.random() < TERSE_SHARE else SENTENCES
    moves = scene.camera.turn != "still"
    unsaid = [
        *(() if heard else ("{sound}",)),
        *(("{travel}", "{entry}") if moves and scene.direction == "down" else ()),  # it moves in the picture
    ]
    if unsaid:
        templates = tuple(one for one in templates if not any(field in one for field in unsaid))
    template = rng.choice(templates)
    caption = template.format(
        bare=bare,
        subject=f"{'an' if bare[0] in 'aeiou' else 'a'} {bare}",
        material=scene.floor,
        floor=rng.choice(FLOOR_WORDS[scene.floor]),
        travel=rng.choice(TRAVEL_WORDS[scene.direction]),
        entry=rng.choice(ENTRY_WORDS[scene.direction]),
        sound=rng.choice(SOUND_WORDS[scene.floor]),
        place=rng.choice(PLACE_WORDS[scene.background]),
    )
    if moves and rng.random() < CAMERA_SHARE:
        return f"{caption}, {rng.choice(CAMERA_WORDS[scene.camera.turn])}"
    return caption
