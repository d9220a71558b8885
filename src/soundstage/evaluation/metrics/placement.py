"""Whether a sound comes from where its cause is seen."""

from soundstage.evaluation.detectors.panning import find_pans
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.metrics.synchrony import KINDS, belonging
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, correlation


def places(seen: Observation, expected: Expected) -> Rows:
    """Pair the place of each clear impact, 0 = left edge, with the stereo position of its sound."""
    pans = seen.find(find_pans)
    height, width = seen.pictures.shape[1:3]
    return [(event.x * height / width, pans[pair.second]) for event, pair in belonging(seen, expected)]


METRICS: dict[str, Metric] = {
    "pan_correlation": Metric(
        title="stereo position and place, correlation",
        better="high",
        evidence=places,
        pool=correlation,
        kinds=KINDS,
    ),
}
