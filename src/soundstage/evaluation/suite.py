"""Run an evaluation: write the clips of every group, measure the files, pool the evidence.

| group | what it shows |
|---|---|
| `generated` | the model, from held-out captions |
| `cross-attention off` | the same prompts and seeds without attention between picture and sound |
| `through the VAEs` | the world's clips through both VAEs and the vocoder: the best the model can reach |
| `ground truth` | the world's clips: the best that the detectors can see |
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from soundstage.core.errors import RequestError
from soundstage.core.progress import OnProgress, Progress
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation.expectation import Expected, expected_of
from soundstage.evaluation.measure import ClipScores, findings, measure_clip, score, summarise
from soundstage.evaluation.picture import overview, png
from soundstage.evaluation.sources import (
    Case,
    CasePaths,
    cross_attention_off,
    has_encoders,
    stored_cases,
    world_cases,
    world_config,
    write_generated,
    write_reconstruction,
    write_world,
)
from soundstage.evaluation.statistics import Estimate
from soundstage.evaluation.validation import Check, validate
from soundstage.pipelines.pipeline import Pipeline

SUITES: dict[str, Callable[[WorldConfig, int, int], list[Case]]] = {"world": world_cases}

GENERATED, ABLATED = "generated", "cross-attention off"
STORED, CEILING, TRUTH = "clips", "through the VAEs", "ground truth"
NUM_VALIDATED = 8  # clips on which the detectors are tried


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """What to evaluate."""

    suite: str = "world"
    num_clips: int = 64
    seed: int = 1
    directory: Path  # clips and reports go there
    clips: Path | None = None  # measure these files instead of generating
    ablate_cross_attention: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)  # of every request

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise RequestError(f"suite {self.suite!r} is not one of {', '.join(SUITES)}")
        if self.num_clips < 1:
            raise RequestError(f"num_clips={self.num_clips} is not positive; the least is 1")
        if self.seed < 0:
            raise RequestError(f"seed={self.seed} is negative; the least is 0")


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """One measured file."""

    path: Path
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
    metrics: Mapping[str, Estimate]
    seconds_per_clip: float  # of making, not of measuring


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """A whole evaluation."""

    plan: SuitePlan
    model: str
    groups: tuple[GroupResult, ...]
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Write as plain data; what could not be measured is None."""
        return {
            "suite": self.plan.suite,
            "model": self.model,
            "num_clips": self.plan.num_clips,
            "seed": self.plan.seed,
            "request": dict(self.plan.fields),
            "groups": {group.title: _group_dict(group, self.plan.directory) for group in self.groups},
            "validation": [_finite(asdict(check)) for check in self.checks],
        }


def run_suite(
    plan: SuitePlan, pipeline: Pipeline | None = None, *, on_progress: OnProgress | None = None
) -> SuiteResult:
    """Evaluate a model, or the clips of a folder where there is no model.

    Raises:
        RequestError: There is neither a model nor a folder of clips, or a folder cannot be made.
    """
    config = world_config(pipeline, plan.fields)
    cases = SUITES[plan.suite](config, plan.num_clips, plan.seed)
    work = _Work(plan, on_progress)
    groups = []
    if plan.clips is not None:
        groups.append(work.measure(STORED, stored_cases(plan.clips)))
    elif pipeline is None:
        raise RequestError("there is nothing to evaluate; give a model or a folder of clips")
    else:
        generate = partial(write_generated, pipeline=pipeline, fields=plan.fields)
        groups.append(work.make(GENERATED, cases, generate))
        if plan.ablate_cross_attention:
            with cross_attention_off(pipeline.transformer):
                groups.append(work.make(ABLATED, cases, generate))
    if pipeline is not None and has_encoders(pipeline):
        reconstruct = partial(write_reconstruction, config=config, pipeline=pipeline)
        groups.append(work.make(CEILING, cases, lambda case, path: reconstruct(case, path=path)))
    groups.append(work.make(TRUTH, cases, lambda case, path: write_world(case, config, path)))
    work.tell("try detectors", 0, 1)
    checks = validate(cases[:NUM_VALIDATED], config)
    work.tell("try detectors", 1, 1)
    model = "" if pipeline is None else pipeline.model
    return SuiteResult(plan=plan, model=model, groups=tuple(groups), checks=tuple(checks))


class _Work:
    """Makes and measures groups, telling how far it is."""

    def __init__(self, plan: SuitePlan, on_progress: OnProgress | None) -> None:
        self._directory = plan.directory
        self._on_progress = on_progress
        self._began = time.monotonic()

    def make(self, title: str, cases: Sequence[Case], write: Callable[[Case, Path], None]) -> GroupResult:
        """Write the clips of a group into a folder of its own, then measure the files."""
        folder = self._directory / title.replace(" ", "-")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"cannot make folder {folder}: {error.strerror or error}") from error
        paths = [folder / f"{case.name}.mp4" for case in cases]
        self.tell(f"make {title}", 0, len(cases))
        for done, (case, path) in enumerate(zip(cases, paths, strict=True), start=1):
            write(case, path)
            self.tell(f"make {title}", done, len(cases))
        seconds = (time.monotonic() - self._began) / len(cases)
        return self.measure(title, list(zip(cases, paths, strict=True)), seconds)

    def measure(self, title: str, cases: CasePaths, seconds_per_clip: float = math.nan) -> GroupResult:
        """Measure files."""
        self.tell(f"measure {title}", 0, len(cases))
        clips = []
        for done, (case, path) in enumerate(cases, start=1):
            clips.append(_measured(case, path))
            self.tell(f"measure {title}", done, len(cases))
        return GroupResult(
            title=title,
            clips=tuple(clips),
            metrics=summarise([clip.scores for clip in clips]),
            seconds_per_clip=seconds_per_clip,
        )

    def tell(self, stage: str, step: int, num_steps: int) -> None:
        """Report progress; step 0 starts a stage's clock."""
        if step == 0:
            self._began = time.monotonic()
        if self._on_progress is not None:
            seconds = time.monotonic() - self._began
            self._on_progress(Progress(stage=stage, step=step, num_steps=num_steps, seconds=seconds))


def _measured(case: Case, path: Path) -> ClipResult:
    seen, expected = measure_clip(path), expected_of(case.caption)
    return ClipResult(
        path=path,
        caption=case.caption,
        expected=expected,
        found=findings(seen),
        scores=score(seen, expected),
        picture=png(overview(seen)),
    )


def _group_dict(group: GroupResult, directory: Path) -> dict[str, Any]:
    return {
        "seconds_per_clip": _finite(group.seconds_per_clip),
        "metrics": {name: _finite(asdict(estimate)) for name, estimate in group.metrics.items()},
        "clips": [
            {
                "file": _relative(clip.path, directory),
                "caption": clip.caption,
                "expected": dict(clip.expected),
                "found": dict(clip.found),
                "evidence": {name: [list(row) for row in rows] for name, rows in clip.scores.items() if rows},
            }
            for clip in group.clips
        ],
    }


def _relative(path: Path, directory: Path) -> str:
    return str(path.relative_to(directory) if path.is_relative_to(directory) else path)


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
