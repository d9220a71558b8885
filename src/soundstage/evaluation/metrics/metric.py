"""What a metric is: the evidence that one clip gives, and how the evidence of many becomes a number."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Pool, Rows

Better = Literal["high", "low", "zero", "reference"]
"""What is good; "reference" = as near as possible to the world's own clips."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One line of the report."""

    title: str
    better: Better
    evidence: Callable[[Observation, Expected], Rows]
    pool: Pool
    unit: str = ""
    digits: int = 3  # after the point
