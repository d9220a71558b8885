"""Pool the evidence of many clips into one number, and say how sure that number is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95

Evidence = Float[np.ndarray, "rows columns"]
Rows = Sequence[tuple[float | int, ...]]
"""What one clip contributes: no row where it says nothing about a metric."""
Pool = Callable[[Evidence], float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A pooled value with its confidence interval; NaN where there is no evidence."""

    value: float
    low: float
    high: float
    num_clips: int  # that contribute
    num_rows: int


def mean(rows: Evidence) -> float:
    """Average of the first column."""
    return float(rows[:, 0].mean())


def mean_magnitude(rows: Evidence) -> float:
    """Average of the first column without its signs."""
    return float(np.abs(rows[:, 0]).mean())


def f1(rows: Evidence) -> float:
    """Harmonic mean of recall and precision from the counts found, wanted, right, given."""
    found, wanted, right, given = rows.sum(0)
    recall = found / wanted if wanted else 1.0
    precision = right / given if given else 1.0
    return float(2 * recall * precision / (recall + precision)) if recall + precision else 0.0


def share(rows: Evidence) -> float:
    """Sum of the first column over the sum of the second."""
    part, whole = rows.sum(0)
    return float(part / whole) if whole else math.nan


def correlation(rows: Evidence) -> float:
    """Pearson's correlation of two columns."""
    if len(rows) < 3 or min(rows.std(0)) < 1e-9:
        return math.nan
    return float(np.corrcoef(rows.T)[0, 1])


def estimate(clips: Sequence[Rows], pool: Pool, *, seed: int = 0) -> Estimate:
    """Pool all clips, then again and again as many clips drawn with replacement.

    Whole clips are drawn, not rows: two impacts of one clip are not independent.

    Source: Efron 1979, the bootstrap; the interval is that of percentiles.
    """
    pieces = [np.array(rows, dtype=np.float64) for rows in clips if len(rows)]
    if not pieces:
        return Estimate(value=math.nan, low=math.nan, high=math.nan, num_clips=0, num_rows=0)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(pieces), size=(NUM_RESAMPLES, len(pieces)))
    values = np.array([pool(np.concatenate([pieces[index] for index in draw])) for draw in draws])
    values = values[np.isfinite(values)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, (tail, 100 - tail)) if len(values) else (math.nan, math.nan)
    whole = np.concatenate(pieces)
    return Estimate(
        value=pool(whole), low=float(low), high=float(high), num_clips=len(pieces), num_rows=len(whole)
    )
