"""Whether picture and sound are active at the same moments, whatever they show; for any clip."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from soundstage.evaluation.detectors.activity import GRID, LAGS, activity_correlation
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Pool, Rows

Curves = NDArray[np.float64]  # (draws, lags and the number of clips)


def curve(seen: Observation, _: Expected) -> Rows:
    """Give the correlation of movement and of beginning sound at every lag."""
    found = seen.find(activity_correlation)
    return [] if found is None else [tuple(round(value, 4) for value in found.tolist())]


def _peak(sums: Curves) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lag in ms and height of the mean curve's peak, between the lags by a parabola."""
    curves = sums[:, :-1] / np.maximum(sums[:, -1:], 1)
    index = curves[:, 1:-1].argmax(1) + 1
    rows = np.arange(len(curves))
    left, middle, right = (curves[rows, index + step] for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    offset = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1), 0.0).clip(-1, 1)
    step = 1000 * GRID * (LAGS[1] - LAGS[0])
    return 1000 * GRID * LAGS[0] + step * (index + offset), middle - 0.25 * (left - right) * offset


def _pool(combine: Callable[[Curves], NDArray[np.float64]]) -> Pool:
    """Average the curves of many clips, then look at the peak: one clip's may be another event's."""
    return Pool(
        moments=lambda rows: np.concatenate((rows, np.ones((len(rows), 1))), 1),
        combine=lambda sums: np.where(sums[:, -1] > 0, combine(sums), np.nan),
    )


METRICS: dict[str, Metric] = {
    "activity_lag": Metric(
        title="lag of sound behind movement",
        better="reference",
        evidence=curve,
        pool=_pool(lambda sums: _peak(sums)[0]),
        unit="ms",
        digits=0,
    ),
    "activity_correlation": Metric(
        title="correlation of sound and movement at that lag",
        better="reference",
        evidence=curve,
        pool=_pool(lambda sums: _peak(sums)[1]),
    ),
}
