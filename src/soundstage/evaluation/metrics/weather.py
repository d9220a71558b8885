"""Whether rain, wind, sea and crowd are what the caption says, and swell together in picture and sound."""

from collections.abc import Callable

from soundstage.evaluation.detectors.ambience import (
    FoundAmbience,
    find_heard_ambience,
    find_seen_ambience,
    find_swell,
)
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, mean

KINDS = ("ambience",)


def _as_said(title: str, attribute: str, detector: Callable[[Observation], FoundAmbience | None]) -> Metric:
    """Make the metric that compares one attribute with what is found."""

    def evidence(seen: Observation, expected: Expected) -> Rows:
        if attribute not in expected:
            return []
        found = seen.find(detector)
        return [(float(found is not None and getattr(found, attribute) == expected[attribute]),)]

    return Metric(title=title, better="high", evidence=evidence, pool=mean, kinds=KINDS)


def swells(seen: Observation, _: Expected) -> Rows:
    """Correlate seen and heard intensity."""
    swell = seen.find(find_swell)
    return [] if swell is None else [(swell,)]


METRICS: dict[str, Metric] = {
    "ambience_seen": _as_said("rain, wind, sea or crowd is seen as said", "element", find_seen_ambience),
    "ambience_heard": _as_said("rain, wind, sea or crowd is heard as said", "element", find_heard_ambience),
    "level_seen": _as_said("how strong it looks is as said", "level", find_seen_ambience),
    "level_heard": _as_said("how strong it sounds is as said", "level", find_heard_ambience),
    "swell": Metric(
        title="seen and heard intensity, correlation", better="high", evidence=swells, pool=mean, kinds=KINDS
    ),
}
