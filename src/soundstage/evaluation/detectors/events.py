"""What is seen to happen at one moment, whatever the kind of scene: the moments that should sound."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from soundstage.evaluation.detectors.contacts import find_contacts
from soundstage.evaluation.detectors.impacts import find_impacts
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.observation import Observation


@runtime_checkable
class SeenEvent(Protocol):
    """One moment in the picture."""

    @property
    def time(self) -> float:
        """Seconds."""

    @property
    def x(self) -> float:
        """Picture heights from the left edge, of what makes it."""

    @property
    def is_clear(self) -> bool:
        """Whether a viewer would expect a sound."""


EVENTS: dict[str, Callable[[Observation], Sequence[SeenEvent]]] = {
    "bounce": find_impacts,
    "varied": find_impacts,
    "objects": find_contacts,
}
"""Kind of scene to the detector of its moments."""


def seen_events(seen: Observation, expected: Expected) -> Sequence[SeenEvent]:
    """List what is seen to happen, in order; of a scene of unknown kind, impacts."""
    return seen.find(EVENTS.get(expected.get("kind", ""), find_impacts))
