"""Pool the evidence of many clips into one number, and say how sure that number is.

A pool is a sum of moments over all rows, and a formula on the sum. So a bootstrap needs no rows: a thousand
resamples of a thousand clips are one matrix product.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95

Evidence = Float[np.ndarray, "rows columns"]
Moments = NDArray[np.float64]  # (draws, moments)
Values = NDArray[np.float64]  # (draws,)
Rows = Sequence[tuple[float | int, ...]]
"""What one clip contributes: no row where it says nothing about a metric."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How rows become a number; called with rows, it gives that number."""

    moments: Callable[[Evidence], Moments]  # of each row, to be summed
    combine: Callable[[Moments], Values]  # sums to values; NaN where they say nothing

    def __call__(self, rows: Evidence) -> float:
        """Pool rows."""
        return float(self.combine(self.moments(rows).sum(0, keepdims=True))[0])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A pooled value with its confidence interval; NaN where there is no evidence."""

    value: float
    low: float
    high: float
    num_clips: int  # that contribute
    num_rows: int


class Spread(NamedTuple):
    """A pooled value with what it would be for other draws of the same clips."""

    value: float
    draws: Values  # (resamples,)


NOTHING = Estimate(value=math.nan, low=math.nan, high=math.nan, num_clips=0, num_rows=0)


def _ratio(part: Values, whole: Values, otherwise: float = math.nan) -> Values:
    """Divide; `otherwise` where the divisor is zero."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), otherwise)


def _counted(values: NDArray[np.float64]) -> Moments:
    return np.stack((values, np.ones_like(values)), -1)


def _f1(sums: Moments) -> Values:
    recall = _ratio(sums[..., 0], sums[..., 1], 1.0)
    precision = _ratio(sums[..., 2], sums[..., 3], 1.0)
    return _ratio(2 * recall * precision, recall + precision, 0.0)


def _correlation(sums: Moments) -> Values:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    n = np.maximum(n, 1)
    spread_x, spread_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
    product = np.sqrt(np.maximum(spread_x * spread_y, 0))
    known = (sums[..., 0] >= 3) & (spread_x > 1e-16) & (spread_y > 1e-16)
    return np.where(known, (xy / n - x * y / n**2) / np.where(known, product, 1), math.nan)


def _products(rows: Evidence) -> Moments:
    x, y = rows[:, 0], rows[:, 1]
    return np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), -1)


mean = Pool(
    moments=lambda rows: _counted(rows[:, 0]), combine=lambda sums: _ratio(sums[..., 0], sums[..., 1])
)
"""Average of the first column."""

mean_magnitude = Pool(
    moments=lambda rows: _counted(np.abs(rows[:, 0])), combine=lambda sums: _ratio(sums[..., 0], sums[..., 1])
)
"""Average of the first column without its signs."""

share = Pool(moments=lambda rows: rows[:, :2], combine=lambda sums: _ratio(sums[..., 0], sums[..., 1]))
"""Sum of the first column over the sum of the second."""

f1 = Pool(moments=lambda rows: rows[:, :4], combine=_f1)
"""Harmonic mean of recall and precision from the counts found, wanted, right, given."""

correlation = Pool(moments=_products, combine=_correlation)
"""Pearson's correlation of two columns."""


def estimate(clips: Sequence[Rows], pool: Pool, *, seed: int = 0) -> Estimate:
    """Pool all clips, then again and again as many clips drawn with replacement.

    Whole clips are drawn, not rows: two impacts of one clip are not independent.

    Source: Efron 1979, the bootstrap; the interval is that of percentiles.
    """
    known = [rows for rows in clips if len(rows)]
    if not known:
        return NOTHING
    found = spread(known, pool, seed=seed)
    return estimate_of(found, len(known), sum(len(rows) for rows in known))


def spread(clips: Sequence[Rows], pool: Pool, *, seed: int = 0) -> Spread:
    """Pool clips and draws of clips; all of NaN where there is no evidence."""
    known = [rows for rows in clips if len(rows)]
    if not known:
        return Spread(math.nan, np.full(NUM_RESAMPLES, math.nan))
    sums = np.stack([pool.moments(np.array(rows, dtype=np.float64)).sum(0) for rows in known])
    counts = _draws(len(known), NUM_RESAMPLES, seed)
    return Spread(float(pool.combine(sums.sum(0, keepdims=True))[0]), pool.combine(counts @ sums))


def difference(first: Sequence[Rows], second: Sequence[Rows], pool: Pool, *, paired: bool) -> Estimate:
    """Estimate by how much the second value is larger.

    Args:
        paired: The clips of both lists belong together, one to one, and are drawn together: what makes one
            prompt harder than another then cancels.
    """
    if paired:
        both = [(a, b) for a, b in zip(first, second, strict=True) if len(a) and len(b)]
        first, second = [a for a, _ in both], [b for _, b in both]
    one, two = spread(first, pool), spread(second, pool, seed=0 if paired else 1)
    numbers = [sum(len(rows) > 0 for rows in clips) for clips in (first, second)]
    if not min(numbers):
        return NOTHING
    rows = min(sum(map(len, first)), sum(map(len, second)))
    return estimate_of(Spread(two.value - one.value, two.draws - one.draws), min(numbers), rows)


def estimate_of(found: Spread, num_clips: int, num_rows: int) -> Estimate:
    """Take the interval from the draws."""
    finite = found.draws[np.isfinite(found.draws)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(finite, (tail, 100 - tail)) if len(finite) else (math.nan, math.nan)
    return Estimate(
        value=found.value, low=float(low), high=float(high), num_clips=num_clips, num_rows=num_rows
    )


@lru_cache(maxsize=64)
def _draws(count: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each of `count` clips is drawn, (resamples, count)."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(count, size=(resamples, count))
    counts = np.zeros((resamples, count))
    np.add.at(counts, (np.arange(resamples)[:, None], chosen), 1)
    return counts
