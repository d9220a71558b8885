"""Measure one file: what is found in it, and what that says about each metric."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from soundstage.evaluation.expectation import Expected, expected_of
from soundstage.evaluation.metrics.registry import FINDINGS, METRICS
from soundstage.evaluation.observation import Observation, observe
from soundstage.evaluation.picture import overview, png
from soundstage.evaluation.statistics import Estimate, Rows, estimate

ClipScores = Mapping[str, Rows]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one file says: plain data, so that it can come from another process."""

    expected: Expected
    found: Mapping[str, Any]
    scores: ClipScores
    picture: bytes  # PNG: frames and spectrogram with what was found


def measure_clip(path: Path) -> Observation:
    """Read a file for measuring; depends on nothing but the file.

    Raises:
        MediaError: The file is missing, damaged or has no picture.
    """
    return observe(path)


def findings(seen: Observation, expected: Expected) -> dict[str, Any]:
    """Write what was found as plain data: what makes sense for the kind of scene that is promised."""
    return {
        name: _plain(seen.find(finding.detector))
        for name, finding in FINDINGS.items()
        if finding.speaks_of(expected.get("kind"))
    }


def score(seen: Observation, expected: Expected) -> ClipScores:
    """Collect the evidence of one clip on every metric."""
    return {name: metric.rows(seen, expected) for name, metric in METRICS.items()}


def summarise(clips: Sequence[ClipScores]) -> dict[str, Estimate]:
    """Pool many clips into one estimate per metric."""
    return {name: estimate([clip[name] for clip in clips], metric.pool) for name, metric in METRICS.items()}


def measure_file(path: Path, caption: str, kind: str = "") -> Measured:
    """Measure one file against its caption.

    Args:
        kind: Of scene; what the caption speaks of when absent.

    Raises:
        MediaError: The file is missing, damaged or has no picture.
    """
    seen, expected = observe(path), dict(expected_of(caption))
    if kind:
        expected["kind"] = kind
    return Measured(
        expected=expected,
        found=findings(seen, expected),
        scores=score(seen, expected),
        picture=png(overview(seen, expected)),
    )


def measure_files(clips: Sequence[tuple[Path, str, str]], *, workers: int = 1) -> Iterator[Measured]:
    """Measure files with their captions and kinds of scenes, in order.

    Args:
        workers: Processes that share the work; with one, this process does it.
    """
    if workers == 1 or len(clips) < 2:
        yield from (measure_file(*clip) for clip in clips)
        return
    context = get_context("spawn")  # a fork would copy the threads of torch in any state
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(measure_file, *zip(*clips, strict=True))


def _plain(value: Any) -> Any:
    """Turn findings into what JSON knows, floats to four places."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(item) for name, item in asdict(value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
