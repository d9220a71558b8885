"""What all instruments share: the place they stand in, and how one speaks of colour, count and side."""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from soundstage.data.world.bounce import BACKGROUNDS
from soundstage.data.world.bounce_caption import PLACE_WORDS
from soundstage.data.world.kind import pan_of

COUNT_WORDS = ("never", "once", "twice", "three times", "four times", "five times", "six times")
SIDE = 0.12  # picture widths off the middle from where on one says left or right
SETTING_SHARE = 0.3  # of captions that name the background


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A background without a floor."""

    background: str
    aspect: float  # picture width over height
    tint: tuple[float, float, float]  # added to the background's RGB in [0, 1]
    texture: float  # in [0, 1), shifts clouds and stars
    flipped: bool  # whether it is drawn mirrored

    @classmethod
    def sample(cls, rng: random.Random, aspect: float) -> "Stage":
        """Draw a background."""
        return cls(
            background=rng.choice(BACKGROUNDS),
            aspect=aspect,
            tint=(rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)),
            texture=rng.random(),
            flipped=rng.random() < 0.5,
        )

    def mirrored(self) -> "Stage":
        """Swap left and right."""
        return replace(self, flipped=not self.flipped)

    def pan(self, x: float) -> float:
        """Stereo position of a place: 0 = left edge, 1 = right edge."""
        return pan_of(x, self.aspect)

    def side(self, x: float) -> str:
        """Say where a place is: "on the left", "on the right" or, in between, nothing."""
        off = x / self.aspect - 0.5
        if abs(off) < SIDE:
            return ""
        return "on the left" if off < 0 else "on the right"


def sentence(rng: random.Random, wordings: Sequence[str], stage: Stage, **words: str) -> str:
    """Fill one of several wordings in, sometimes with the background named, in lower case."""
    text = rng.choice(wordings).format(**words)
    if rng.random() < SETTING_SHARE:
        setting = rng.choice(PLACE_WORDS[stage.background])
        text = f"{text}, {setting}" if rng.random() < 0.6 else f"{setting}, {text}"
    return tidy(text)


UNSEEN = (
    "an empty scene {place}, {heard} off screen",
    "{place}, {heard} out of sight",
    "nothing to see {place}, but {heard} off screen",
    "{heard} somewhere off screen, {place}",
)


def heard_only(rng: random.Random, stage: Stage, heard: str) -> str:
    """Say that only the background is seen, and what is heard."""
    return rng.choice(UNSEEN).format(place=rng.choice(PLACE_WORDS[stage.background]), heard=tidy(heard))


def tidy(text: str) -> str:
    """Close the gaps that empty words leave, and put "an" before vowels; a note is no word."""
    closed = " ".join(text.split()).replace(" ,", ",")
    return re.sub(r"\ba (?=[aeiou]\w\w)", "an ", closed)


def swing_times(first: float, interval: float, duration: float) -> list[float]:
    """List the times from `first` on, every `interval` seconds, that lie in [0, `duration`)."""
    start = math.ceil(-first / interval)
    count = max(math.ceil((duration - first) / interval) - start, 0)
    times = [first + (start + index) * interval for index in range(count + 1)]
    return [time for time in times if 0 <= time < duration]
