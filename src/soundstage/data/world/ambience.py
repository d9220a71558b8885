"""Rain, wind, sea and crowd: how strong they are is seen and heard, alone or over other scenes."""

import math
import random
from dataclasses import dataclass, replace
from typing import Any, Literal

from soundstage.data.world.camera import STILL, Camera
from soundstage.data.world.kind import CLIP_SECONDS, Event, Split, held_out

Element = Literal["rain", "wind", "sea", "crowd"]
Level = Literal["light", "medium", "heavy"]

ELEMENTS: tuple[Element, ...] = ("rain", "wind", "sea", "crowd")
LAYERS: tuple[Element, ...] = ("rain", "wind")
"""What may lie over other scenes."""
LEVELS: dict[Level, float] = {"light": 0.28, "medium": 0.52, "heavy": 0.82}
"""Level to the mean intensity, of 1."""
DEPTHS: dict[Element, tuple[float, float]] = {
    "rain": (0.15, 0.35),
    "wind": (0.35, 0.60),
    "sea": (0.75, 0.90),
    "crowd": (0.20, 0.50),
}
"""Element to how much of its mean the intensity swings up and down, least and most."""
LAYER_DEPTH = 0.4  # factor on that for layers, so that what they lie over stays heard throughout
PERIODS: dict[Element, tuple[float, float]] = {
    "rain": (1.4, 2.4),
    "wind": (1.2, 2.2),
    "sea": (1.5, 2.2),
    "crowd": (1.2, 2.2),
}
"""Element to seconds of one swell, least and most."""
PLACES: dict[Element, tuple[str, ...]] = {
    "rain": ("street", "meadow", "lake"),
    "wind": ("meadow", "desert", "snow"),
    "sea": ("day", "dusk", "night"),
    "crowd": ("hall", "square", "stage"),
}
"""Element to where it may be shown alone."""
ENVELOPE_STEP = 0.1  # s, of the envelope that is written beside a clip


@dataclass(frozen=True, kw_only=True)
class Ambience:
    """Something that sounds all the time, with an intensity that swells and ebbs as a sine."""

    element: Element
    level: Level
    place: str  # of `PLACES`; not shown in a layer
    depth: float  # of the swell, as a share of the mean
    period: float  # s
    phase: float  # in [0, 1), of the period at time 0
    blows_right: bool  # which way wind and rain drift
    seed: int  # of where each drop, leaf or head is
    aspect: float
    is_layer: bool = False
    flipped: bool = False  # whether what stands still is drawn mirrored

    @property
    def camera(self) -> Camera:
        """It stands."""
        return STILL

    @property
    def mean(self) -> float:
        """Intensity without the swell, of 1."""
        return LEVELS[self.level]

    def intensity(self, time: float) -> float:
        """How strong it is seen and heard to be, between 0 and about 1.5."""
        return self.mean * (1 + self.depth * math.sin(2 * math.pi * (time / self.period + self.phase)))

    def travelled(self, time: float) -> float:
        """Integral of the intensity from 0 on: how far what it drives has moved, in intensities times s."""
        turn = 2 * math.pi
        swung = math.cos(turn * self.phase) - math.cos(turn * (time / self.period + self.phase))
        return self.mean * (time + self.depth * self.period / turn * swung)

    def events_before(self, duration: float) -> tuple[Event, ...]:  # noqa: ARG002  as every subject takes it
        """List nothing: it has no moments."""
        return ()

    def mirrored(self) -> "Ambience":
        """Swap left and right."""
        return replace(self, blows_right=not self.blows_right, flipped=not self.flipped)

    def facts(self) -> dict[str, Any]:
        """Ground truth; `envelope` is the intensity at every tenth of a second of a training clip."""
        steps = range(round(CLIP_SECONDS / ENVELOPE_STEP) + 1)
        direction = ("right" if self.blows_right else "left") if self.element == "wind" else None
        return {
            "element": self.element,
            "level": self.level,
            "place": None if self.is_layer else self.place,
            "direction": direction,
            "swell": {"mean": self.mean, "depth": self.depth, "period": self.period, "phase": self.phase},
            "envelope": [round(self.intensity(ENVELOPE_STEP * step), 4) for step in steps],
        }


def is_held_out_ambience(ambience: Ambience) -> bool:
    """Whether a combination of element, level and place is kept from training: 6 of 36."""
    return held_out("an ambience of", ambience.level, ambience.element, ambience.place)


def sample_ambience(
    rng: random.Random,
    *,
    split: Split,
    duration: float,  # noqa: ARG001  as every kind takes it
    aspect: float,
    is_layer: bool = False,
) -> Ambience:
    """Draw an ambience; a layer is rain or wind, of any combination."""
    while True:
        element = rng.choice(LAYERS if is_layer else ELEMENTS)
        least, most = DEPTHS[element]
        ambience = Ambience(
            element=element,
            level=rng.choice(tuple(LEVELS)),
            place=rng.choice(PLACES[element]),
            depth=rng.uniform(least, most) * (LAYER_DEPTH if is_layer else 1),
            period=rng.uniform(*PERIODS[element]),
            phase=rng.random(),
            blows_right=rng.random() < 0.5,
            seed=rng.randrange(1 << 30),
            aspect=aspect,
            is_layer=is_layer,
            flipped=rng.random() < 0.5,
        )
        if is_layer or is_held_out_ambience(ambience) == (split == "held_out"):
            return ambience
