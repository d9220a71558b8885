"""Whether what is seen to hit is heard to hit, and when.

An event near a detector's threshold is neither demanded nor held against anybody: every clear impact wants an
onset, clear or faint, and every clear onset wants an impact, clear or faint.
"""

from functools import partial

from soundstage.evaluation.detectors.events import EVENTS, SeenEvent, seen_events
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.matching import Pair, match_times
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, f1, mean, mean_magnitude, share

KINDS = tuple(EVENTS)
WIDEST = 0.2  # s; what is farther apart does not belong together


def matched_counts(seen: Observation, expected: Expected, *, tolerance: float) -> Rows:
    """Count clear impacts with an onset, clear impacts, clear onsets with an impact, clear onsets."""
    impacts, onsets = seen_events(seen, expected), seen.find(find_onsets)
    clear_impacts = [impact.time for impact in impacts if impact.is_clear]
    clear_onsets = [onset.time for onset in onsets if onset.is_clear]
    heard = match_times(clear_impacts, [onset.time for onset in onsets], tolerance)
    seen_too = match_times(clear_onsets, [impact.time for impact in impacts], tolerance)
    return [(len(heard), len(clear_impacts), len(seen_too), len(clear_onsets))]


def heard_counts(seen: Observation, expected: Expected, *, tolerance: float) -> Rows:
    """Count clear impacts with an onset, and clear impacts."""
    return [row[:2] for row in matched_counts(seen, expected, tolerance=tolerance)]


def belonging(seen: Observation, expected: Expected) -> list[tuple[SeenEvent, Pair]]:
    """Pair each clear impact with its onset; the faint ones take theirs, too, so that none is left over."""
    impacts, onsets = seen_events(seen, expected), seen.find(find_onsets)
    pairs = match_times([impact.time for impact in impacts], [onset.time for onset in onsets], WIDEST)
    return [(impacts[pair.first], pair) for pair in pairs if impacts[pair.first].is_clear]


def differences(seen: Observation, expected: Expected) -> Rows:
    """List by how many milliseconds each onset comes after its impact."""
    return [(1000 * pair.difference,) for _, pair in belonging(seen, expected)]


METRICS: dict[str, Metric] = {
    "impact_f1_80ms": Metric(
        title="impacts and onsets, F1 within 80 ms",
        better="high",
        evidence=partial(matched_counts, tolerance=0.08),
        pool=f1,
        kinds=KINDS,
    ),
    "impact_f1_100ms": Metric(
        title="impacts and onsets, F1 within 100 ms",
        better="high",
        evidence=partial(matched_counts, tolerance=0.1),
        pool=f1,
        kinds=KINDS,
    ),
    "heard_100ms": Metric(
        title="impacts with an onset within 100 ms",
        better="high",
        evidence=partial(heard_counts, tolerance=0.1),
        pool=share,
        kinds=KINDS,
    ),
    "heard_200ms": Metric(
        title="impacts with an onset within 200 ms",
        better="high",
        evidence=partial(heard_counts, tolerance=0.2),
        pool=share,
        kinds=KINDS,
    ),
    "sync_error": Metric(
        title="mean distance of sound and impact",
        better="low",
        evidence=differences,
        pool=mean_magnitude,
        kinds=KINDS,
        unit="ms",
        digits=1,
    ),
    "sync_bias": Metric(
        title="mean delay of sound after impact",
        better="zero",
        evidence=differences,
        pool=mean,
        kinds=KINDS,
        unit="ms",
        digits=1,
    ),
}
