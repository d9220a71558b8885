"""Everything that is measured, in the order of the report: `METRICS`, and `FINDINGS` for each single clip."""

from collections.abc import Callable
from typing import Any

from soundstage.evaluation.detectors.floor import find_floor
from soundstage.evaluation.detectors.impacts import find_impacts
from soundstage.evaluation.detectors.motion import find_direction
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.detectors.panning import find_pans
from soundstage.evaluation.detectors.silhouette import find_colour, find_shape, find_size
from soundstage.evaluation.detectors.timbre import find_timbre
from soundstage.evaluation.metrics import adherence, container, placement, sound_level, steadiness, synchrony
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation

METRICS: dict[str, Metric] = {
    **synchrony.METRICS,
    **adherence.METRICS,
    **placement.METRICS,
    **steadiness.METRICS,
    **sound_level.METRICS,
    **container.METRICS,
}

FINDINGS: dict[str, Callable[[Observation], Any]] = {
    "colour": find_colour,
    "shape": find_shape,
    "size": find_size,
    "floor": find_floor,
    "timbre": find_timbre,
    "direction": find_direction,
    "impacts": find_impacts,
    "onsets": find_onsets,
    "pans": find_pans,
}
"""What is written down about each clip; plain values, tuples or frozen dataclasses of them."""
