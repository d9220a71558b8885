"""Measure one file: what is found in it, and what that says about each metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.registry import FINDINGS, METRICS
from soundstage.evaluation.observation import Observation, observe
from soundstage.evaluation.statistics import Estimate, Rows, estimate

ClipScores = Mapping[str, Rows]


def measure_clip(path: Path) -> Observation:
    """Read a file and run every detector; depends on nothing but the file.

    Raises:
        MediaError: The file is missing, damaged or has no picture.
    """
    seen = observe(path)
    for detector in FINDINGS.values():
        seen.find(detector)
    return seen


def findings(seen: Observation) -> dict[str, Any]:
    """Write what was found as plain data."""
    return {name: _plain(seen.find(detector)) for name, detector in FINDINGS.items()}


def score(seen: Observation, expected: Expected) -> ClipScores:
    """Collect the evidence of one clip on every metric."""
    return {name: metric.evidence(seen, expected) for name, metric in METRICS.items()}


def summarise(clips: Sequence[ClipScores]) -> dict[str, Estimate]:
    """Pool many clips into one estimate per metric."""
    return {name: estimate([clip[name] for clip in clips], metric.pool) for name, metric in METRICS.items()}


def _plain(value: Any) -> Any:
    """Turn findings into what JSON knows, floats to four places."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(item) for name, item in asdict(value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
