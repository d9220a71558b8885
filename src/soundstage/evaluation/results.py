"""What an evaluation found: clips, groups of clips, and everything as plain data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from soundstage.evaluation.codec import CodecResult
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.measure import ClipScores
from soundstage.evaluation.metrics.registry import METRICS
from soundstage.evaluation.statistics import Estimate, Rows, Spread, difference, estimate, spread
from soundstage.evaluation.validation import Check

GENERATED, ABLATED = "generated", "cross-attention off"
DUBBED, PICTURED = "sound for the true picture", "picture for the true sound"
STORED, CEILING, TRUTH = "clips", "through the VAEs", "ground truth"

FORMAT = 2  # of the JSON


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """One measured file."""

    path: Path
    kind: str  # of scene; empty where nothing is known
    unseen: bool  # whether its combination of attributes was kept from training
    caption: str
    expected: Expected
    found: Mapping[str, Any]
    scores: ClipScores
    picture: bytes  # PNG: frames and spectrogram with what was found


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """All clips of one source."""

    title: str
    clips: tuple[ClipResult, ...]
    seconds_per_clip: float  # of making, not of measuring

    @property
    def metrics(self) -> Mapping[str, Estimate]:
        """Every metric over all clips."""
        return self.by_kind[""]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of scenes among the clips, in order."""
        return tuple(dict.fromkeys(clip.kind for clip in self.clips))

    @cached_property
    def by_kind(self) -> Mapping[str, Mapping[str, Estimate]]:
        """Every metric over the clips of each kind of scene; under "" over all clips."""
        return {
            kind: {name: self.estimate(name, (kind,) if kind else ()) for name in METRICS}
            for kind in ("", *self.kinds)
        }

    def rows(self, metric: str, kinds: Sequence[str] = (), unseen: bool | None = None) -> list[Rows]:
        """Give the evidence of each clip: of some kinds, of unseen or seen combinations, if that is said."""
        return [
            clip.scores[metric]
            for clip in self.clips
            if (not kinds or clip.kind in kinds) and unseen in (None, clip.unseen)
        ]

    def estimate(self, metric: str, kinds: Sequence[str] = (), unseen: bool | None = None) -> Estimate:
        """Pool some clips."""
        return estimate(self.rows(metric, kinds, unseen), METRICS[metric].pool)

    def spread(self, metric: str, kinds: Sequence[str] = (), unseen: bool | None = None) -> Spread:
        """Pool some clips, and draws of them; those of unseen and seen combinations are independent."""
        rows = self.rows(metric, kinds, unseen)
        return spread(rows, METRICS[metric].pool, seed=int(unseen is True))

    def change(self, metric: str, kinds: Sequence[str] = ()) -> Estimate:
        """Estimate by how much a metric is higher for unseen combinations than for seen ones."""
        seen, unseen = (self.rows(metric, kinds, unseen=which) for which in (False, True))
        return difference(seen, unseen, METRICS[metric].pool, paired=False)


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """A whole evaluation."""

    suite: str
    directory: Path
    model: str
    num_clips: int  # of each kind of scene
    seed: int
    request: Mapping[str, Any]  # fields of every request
    groups: tuple[GroupResult, ...] = ()
    checks: tuple[Check, ...] = ()
    codec: CodecResult | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of scenes among all clips, in order."""
        return tuple(dict.fromkeys(kind for group in self.groups for kind in group.kinds))

    def group(self, title: str) -> GroupResult | None:
        """Find a group by its title."""
        return next((group for group in self.groups if group.title == title), None)

    def to_dict(self) -> dict[str, Any]:
        """Write as plain data; what could not be measured is None."""
        return {
            "format": FORMAT,
            "suite": self.suite,
            "model": self.model,
            "num_clips": self.num_clips,
            "seed": self.seed,
            "request": dict(self.request),
            "groups": {group.title: _group_dict(group, self.directory) for group in self.groups},
            "validation": [finite(asdict(check)) for check in self.checks],
            "codec": None if self.codec is None else finite(self.codec.to_dict()),
            "notes": list(self.notes),
        }


def speaking(groups: Sequence[GroupResult], kind: str) -> Iterator[str]:
    """Name the metrics that some clip of a kind says something about."""
    for name in METRICS:
        if any(kind in group.by_kind and group.by_kind[kind][name].num_clips for group in groups):
            yield name


def finite(value: Any) -> Any:
    """Replace what JSON does not know, such as NaN, by None."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _group_dict(group: GroupResult, directory: Path) -> dict[str, Any]:
    return {
        "seconds_per_clip": finite(group.seconds_per_clip),
        "metrics": _plain(group.metrics),
        "kinds": {kind: _plain(group.by_kind[kind]) for kind in group.kinds if kind},
        "clips": [
            {
                "file": _relative(clip.path, directory),
                "kind": clip.kind,
                "unseen": clip.unseen,
                "caption": clip.caption,
                "expected": dict(clip.expected),
                "found": dict(clip.found),
                "evidence": {name: [list(row) for row in rows] for name, rows in clip.scores.items() if rows},
            }
            for clip in group.clips
        ],
    }


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: finite(asdict(value)) for name, value in estimates.items() if value.num_clips}


def _relative(path: Path, directory: Path) -> str:
    return str(path.relative_to(directory) if path.is_relative_to(directory) else path)
