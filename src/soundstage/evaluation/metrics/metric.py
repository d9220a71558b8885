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
    kinds: tuple[str, ...] = ()  # of scenes that it makes sense for; none = any clip

    def rows(self, seen: Observation, expected: Expected) -> Rows:
        """Collect the evidence of one clip; none where the metric is about other kinds of scenes."""
        if self.kinds and expected.get("kind") not in self.kinds:
            return []
        return self.evidence(seen, expected)
