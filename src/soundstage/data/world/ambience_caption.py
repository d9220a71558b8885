"""What one would say about rain, wind, sea and crowd."""

import random

from soundstage.data.world.ambience import Ambience

SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "rain": {
        "light": ("light rain falls", "a light rain", "it rains a little", "soft rain comes down"),
        "medium": ("rain falls", "it is raining", "steady rain", "rain comes down"),
        "heavy": ("heavy rain falls", "it rains hard", "a heavy rain", "pouring rain comes down"),
    },
    "wind": {
        "light": ("a light wind blows", "a gentle breeze", "leaves drift in a light wind"),
        "medium": ("wind blows", "leaves fly in the wind", "a steady wind blows"),
        "heavy": ("a strong wind blows", "leaves race in a strong wind", "a storm blows"),
    },
    "sea": {
        "light": ("small waves roll in", "a calm sea", "gentle waves reach the beach"),
        "medium": ("waves roll in", "the sea rolls onto the beach", "waves on a beach"),
        "heavy": ("big waves roll in", "a rough sea", "high waves crash onto the beach"),
    },
    "crowd": {
        "light": ("a quiet crowd murmurs", "a calm crowd", "people murmur"),
        "medium": ("a crowd talks", "a crowd of people", "people talk in a crowd"),
        "heavy": ("a loud crowd cheers", "an excited crowd", "a crowd roars"),
    },
}
SILENT: dict[str, dict[str, tuple[str, ...]]] = {
    **{element: SENTENCES[element] for element in ("rain", "wind", "sea")},
    "crowd": {
        "light": ("a calm crowd", "a crowd hardly moves"),
        "medium": ("a crowd of people", "people in a crowd bob up and down"),
        "heavy": ("an excited crowd", "a crowd jumps up and down"),
    },
}
"""The same without what only ears tell."""
DIRECTION_WORDS = {"right": ("to the right", "from the left"), "left": ("to the left", "from the right")}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "street": ("on a grey street", "on a street"),
    "meadow": ("over a green meadow", "over the grass"),
    "lake": ("on a lake", "over water"),
    "desert": ("over yellow sand", "in a desert"),
    "snow": ("over white snow", "in winter"),
    "day": ("by day", "under a pale sky"),
    "dusk": ("at dusk", "at sunset"),
    "night": ("at night", "under a dark sky"),
    "hall": ("in a hall", "in a dark hall"),
    "square": ("outside by day", "on a square"),
    "stage": ("in purple light", "at a concert"),
}
LAYER_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "rain": {
        "light": ("in light rain", "in a light rain", "in light rain"),
        "medium": ("in the rain", "in the rain", "while it rains"),
        "heavy": ("in heavy rain", "in heavy rain", "in pouring rain"),
    },
    "wind": {
        "light": ("in a light wind", "in a light wind", "in a gentle breeze"),
        "medium": ("in the wind", "in the wind", "while wind blows"),
        "heavy": ("in a strong wind", "in a strong wind", "in a storm"),
    },
}
PLACE_SHARE, DIRECTION_SHARE = 0.6, 0.5


def describe_ambience(ambience: Ambience, rng: random.Random) -> str:
    """Describe an ambience that is seen and heard."""
    return _describe(ambience, rng, SENTENCES)


def describe_silent_ambience(ambience: Ambience, rng: random.Random) -> str:
    """Describe only what is seen."""
    return _describe(ambience, rng, SILENT)


def _describe(
    ambience: Ambience, rng: random.Random, sentences: dict[str, dict[str, tuple[str, ...]]]
) -> str:
    words = [rng.choice(sentences[ambience.element][ambience.level])]
    if ambience.element == "wind" and rng.random() < DIRECTION_SHARE:
        words.append(rng.choice(DIRECTION_WORDS["right" if ambience.blows_right else "left"]))
    if rng.random() < PLACE_SHARE:
        words.append(rng.choice(PLACE_WORDS[ambience.place]))
    return " ".join(words)


def add_layer_words(caption: str, layer: Ambience, rng: random.Random) -> str:
    """Say what lies over a scene, before or after what is said of the scene."""
    words = rng.choice(LAYER_WORDS[layer.element][layer.level])
    return f"{words}, {caption}" if rng.random() < 0.3 else f"{caption} {words}"
