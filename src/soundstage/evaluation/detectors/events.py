"""What is seen to happen at one moment, whatever the kind of scene: the moments that should sound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from soundstage.evaluation.detectors.contacts import find_contacts
from soundstage.evaluation.detectors.impacts import find_impacts
from soundstage.evaluation.detectors.notes_bars import find_struck_bars
from soundstage.evaluation.detectors.strikes import find_bell_strikes, find_pad_hits
from soundstage.evaluation.detectors.ticks import find_turns
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.observation import Observation

AT_START, AT_END = 0.08, 0.15  # s at both ends in which a moment need not be clear


@runtime_checkable
class Placed(Protocol):
    """Something with a time and a place."""

    @property
    def time(self) -> float:
        """Seconds."""

    @property
    def x(self) -> float:
        """Picture heights from the left edge, of what makes it."""


@runtime_checkable
class SeenEvent(Placed, Protocol):
    """One moment in the picture."""

    @property
    def is_clear(self) -> bool:
        """Whether a viewer would expect a sound."""


@dataclass(frozen=True)
class Moment:
    """One moment, clear unless it is at an end of the clip."""

    time: float
    x: float
    is_clear: bool


def _moments(seen: Observation, found: Sequence[Placed]) -> tuple[Moment, ...]:
    last = seen.duration - AT_END
    return tuple(Moment(one.time, one.x, bool(AT_START < one.time < last)) for one in found)


def turn_moments(seen: Observation) -> tuple[Moment, ...]:
    """List the turns of a pendulum."""
    return _moments(seen, seen.find(find_turns))


def bell_moments(seen: Observation) -> tuple[Moment, ...]:
    """List the strikes of a bell."""
    return _moments(seen, seen.find(find_bell_strikes))


def pad_moments(seen: Observation) -> tuple[Moment, ...]:
    """List the hits on pads."""
    return _moments(seen, seen.find(find_pad_hits))


def bar_moments(seen: Observation) -> tuple[Moment, ...]:
    """List the strikes on the bars of a xylophone."""
    return _moments(seen, seen.find(find_struck_bars))


EVENTS: dict[str, Callable[[Observation], Sequence[SeenEvent]]] = {
    "bounce": find_impacts,
    "varied": find_impacts,
    "objects": find_contacts,
    "clock": turn_moments,
    "bell": bell_moments,
    "pad": pad_moments,
    "xylophone": bar_moments,
}
"""Kind of scene to the detector of its moments."""


def seen_events(seen: Observation, expected: Expected) -> Sequence[SeenEvent]:
    """List what is seen to happen, in order; of a scene of unknown kind, impacts."""
    return seen.find(EVENTS.get(expected.get("kind", ""), find_impacts))
