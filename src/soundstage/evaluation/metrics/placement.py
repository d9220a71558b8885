"""Whether a sound comes from where its cause is seen."""

from soundstage.evaluation.detectors.impacts import find_impacts
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.detectors.panning import find_pans
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.matching import match_times
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.metrics.synchrony import WIDEST
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, correlation


def places(seen: Observation, _: Expected) -> Rows:
    """Pair the place of each clear impact, 0 = left edge, with the stereo position of its sound."""
    impacts = [impact for impact in seen.find(find_impacts) if impact.is_clear]
    onsets, pans = seen.find(find_onsets), seen.find(find_pans)
    height, width = seen.pictures.shape[1:3]
    pairs = match_times([impact.time for impact in impacts], [onset.time for onset in onsets], WIDEST)
    return [(impacts[pair.first].x * height / width, pans[pair.second]) for pair in pairs]


METRICS: dict[str, Metric] = {
    "pan_correlation": Metric(
        title="stereo position and place, correlation", better="high", evidence=places, pool=correlation
    ),
}
