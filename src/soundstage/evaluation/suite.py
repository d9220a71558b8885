"""Run an evaluation: write the clips of every group, measure the files, pool the evidence.

| group | what it shows |
|---|---|
| `generated` | the model, from captions alone |
| `sound for the true picture` | the model, given the world's picture as a file and the caption |
| `picture for the true sound` | the model, given the world's sound as a file and the caption |
| `cross-attention off` | the prompts and seeds of `generated` without attention between picture and sound |
| `through the VAEs` | the world's clips through both VAEs and the vocoder: the best the model can reach |
| `ground truth` | the world's clips: the best that the detectors can see |
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from soundstage.core.config import nearest
from soundstage.core.errors import RequestError
from soundstage.core.progress import OnProgress, Progress
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation.cases import (
    OTHER_AUDIBILITY,
    Case,
    CasePaths,
    case_kinds,
    stored_cases,
    world_cases,
)
from soundstage.evaluation.codec import measure_codec
from soundstage.evaluation.measure import measure_files
from soundstage.evaluation.results import (
    ABLATED,
    CEILING,
    DUBBED,
    GENERATED,
    PICTURED,
    STORED,
    TRUTH,
    ClipResult,
    GroupResult,
    SuiteResult,
)
from soundstage.evaluation.sources import (
    cross_attention_off,
    has_encoders,
    world_config,
    write_dubbed,
    write_generated,
    write_pictured,
    write_reconstruction,
    write_world,
)
from soundstage.evaluation.validation import Check, validate
from soundstage.pipelines.pipeline import Pipeline

SUITES = ("world", "codec")
STREAMS = ("av", "v2a", "a2v")

NUM_VALIDATED = 8  # clips of each kind on which the detectors are tried

Write = Callable[[Sequence[Case], Sequence[Path]], None]
WriteOne = Callable[[Case, Path], None]


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """What to evaluate."""

    suite: str = "world"
    kinds: tuple[str, ...] = ()  # of scenes; none = all
    num_clips: int = 64  # of each kind
    seed: int = 1
    directory: Path  # clips and reports go there
    clips: tuple[Path, ...] = ()  # measure these files, and those of these folders, instead of generating
    streams: tuple[str, ...] = ("av",)  # what is generated: both, sound for pictures, pictures for sound
    ablate_cross_attention: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)  # of every request
    workers: int = 1  # processes that measure
    batch: int = 1  # clips that are generated together
    with_truth: bool = True  # whether the world's own clips stand beside stored ones

    def __post_init__(self) -> None:
        _check_names("suite", (self.suite,), SUITES)
        _check_names("streams", self.streams, STREAMS)
        _check_names("kinds", self.kinds, case_kinds())
        for name in ("num_clips", "workers", "batch"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)} is not positive; the least is 1")
        if self.seed < 0:
            raise RequestError(f"seed={self.seed} is negative; the least is 0")


def _check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise RequestError(f"{what} {name!r} is not one of {', '.join(known)}{nearest(name, known)}")


def run_suite(
    plan: SuitePlan, pipeline: Pipeline | None = None, *, on_progress: OnProgress | None = None
) -> SuiteResult:
    """Evaluate a model, or stored clips where there are some.

    Raises:
        RequestError: There is neither a model nor a clip, the model cannot take in what it should be given,
            or a folder cannot be made.
        MediaError: A clip cannot be read.
    """
    config = world_config(pipeline, plan.fields)
    work = _Work(plan, on_progress)
    if plan.clips:
        return _measure_stored(plan, config, work)
    if pipeline is None:
        raise RequestError("there is nothing to evaluate; give a model, files or a folder of clips")
    if not has_encoders(pipeline) and (plan.suite == "codec" or {"v2a", "a2v"} & set(plan.streams)):
        raise RequestError(f"{pipeline.model} was saved without encoders: it makes clips, and takes none in")
    refused: list[str] = []
    cases = world_cases(
        config,
        plan.kinds or case_kinds(),
        plan.num_clips,
        plan.seed,
        accepts=partial(_can_read, pipeline, refused=refused),
    )
    notes = (f"{len(refused)} captions that are longer than the model reads were left out",)
    codec = None
    if has_encoders(pipeline):
        codec = measure_codec(pipeline, cases, config, on_progress=on_progress)
    result = SuiteResult(
        suite=plan.suite,
        directory=plan.directory,
        model=pipeline.model,
        num_clips=plan.num_clips,
        seed=plan.seed,
        request=plan.fields,
        codec=codec,
        notes=notes if refused else (),
    )
    if plan.suite == "codec":
        return result
    groups = _world_groups(plan, pipeline, config, cases, work)
    return replace(result, groups=groups, checks=_validated(cases, config, work))


def _can_read(pipeline: Pipeline, caption: str, *, refused: list[str]) -> bool:
    """Whether a model reads a caption to its end; keeps the others."""
    try:
        pipeline.prompts.check_length(caption)
    except RequestError:
        refused.append(caption)
        return False
    return True


def _world_groups(
    plan: SuitePlan, pipeline: Pipeline, config: WorldConfig, cases: Sequence[Case], work: "_Work"
) -> tuple[GroupResult, ...]:
    """Make and measure the clips of every source that is asked for."""
    truth = work.make(TRUTH, cases, _each(partial(write_world, config=config)))
    files = {case.name: clip.path for case, clip in zip(cases, truth.clips, strict=True)}
    both = [case for case in cases if case.kind not in OTHER_AUDIBILITY]
    model: dict[str, Any] = {"pipeline": pipeline, "fields": plan.fields}
    generate = partial(write_generated, **model)
    groups = []
    if "av" in plan.streams:
        groups.append(work.make(GENERATED, cases, generate, plan.batch))
    if "v2a" in plan.streams and both:
        groups.append(work.make(DUBBED, both, _each(partial(write_dubbed, files=files, **model))))
    if "a2v" in plan.streams and both:
        groups.append(work.make(PICTURED, both, _each(partial(write_pictured, files=files, **model))))
    if plan.ablate_cross_attention:
        with cross_attention_off(pipeline.transformer):
            groups.append(work.make(ABLATED, cases, generate, plan.batch))
    if has_encoders(pipeline):
        rebuild = partial(write_reconstruction, config=config, pipeline=pipeline)
        groups.append(work.make(CEILING, cases, _each(rebuild)))
    return (*groups, truth)


def _each(write: WriteOne) -> Write:
    """Write clips one at a time."""

    def write_all(cases: Sequence[Case], paths: Sequence[Path]) -> None:
        for case, path in zip(cases, paths, strict=True):
            write(case, path)

    return write_all


def _measure_stored(plan: SuitePlan, config: WorldConfig, work: "_Work") -> SuiteResult:
    """Measure files, and beside them the world's own clips of the same kinds."""
    group = work.measure(STORED, stored_cases(plan.clips))
    kinds = [kind for kind in group.kinds if kind]
    cases = world_cases(config, kinds, plan.num_clips, plan.seed) if plan.with_truth else []
    truth = [work.make(TRUTH, cases, _each(partial(write_world, config=config)))] if cases else []
    return SuiteResult(
        suite=plan.suite,
        directory=plan.directory,
        model="",
        num_clips=plan.num_clips,
        seed=plan.seed,
        request=plan.fields,
        groups=(group, *truth),
        checks=_validated(cases, config, work),
    )


def _validated(cases: Sequence[Case], config: WorldConfig, work: "_Work") -> tuple[Check, ...]:
    """Try the detectors on some cases of each kind."""
    checks: list[Check] = []
    kinds = list(dict.fromkeys(case.kind for case in cases))
    for done, kind in enumerate(kinds):
        work.tell("try detectors", done, len(kinds))
        checks += validate([case for case in cases if case.kind == kind][:NUM_VALIDATED], config)
    if kinds:
        work.tell("try detectors", len(kinds), len(kinds))
    return tuple(checks)


class _Work:
    """Makes and measures groups, telling how far it is."""

    def __init__(self, plan: SuitePlan, on_progress: OnProgress | None) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self._began = time.monotonic()

    def make(self, title: str, cases: Sequence[Case], write: Write, batch: int = 1) -> GroupResult:
        """Write the clips of a group, `batch` at a time, into a folder of its own; measure the files."""
        folder = self._plan.directory / title.replace(" ", "-")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"cannot make folder {folder}: {error.strerror or error}") from error
        paths = [folder / f"{case.name}.mp4" for case in cases]
        self.tell(f"make {title}", 0, len(cases))
        for first in range(0, len(cases), batch):
            chosen = slice(first, first + batch)
            write(cases[chosen], paths[chosen])
            self.tell(f"make {title}", min(first + batch, len(cases)), len(cases))
        seconds = (time.monotonic() - self._began) / max(len(cases), 1)
        return self.measure(title, list(zip(cases, paths, strict=True)), seconds)

    def measure(self, title: str, cases: CasePaths, seconds_per_clip: float = math.nan) -> GroupResult:
        """Measure files."""
        self.tell(f"measure {title}", 0, len(cases))
        clips = []
        files = [(path, case.caption, case.kind) for case, path in cases]
        measured = measure_files(files, workers=self._plan.workers)
        for (case, path), found in zip(cases, measured, strict=True):
            clips.append(
                ClipResult(
                    path=path,
                    kind=case.kind,
                    unseen=case.unseen,
                    caption=case.caption,
                    expected=found.expected,
                    found=found.found,
                    scores=found.scores,
                    picture=found.picture,
                )
            )
            self.tell(f"measure {title}", len(clips), len(cases))
        return GroupResult(title=title, clips=tuple(clips), seconds_per_clip=seconds_per_clip)

    def tell(self, stage: str, step: int, num_steps: int) -> None:
        """Report progress; step 0 starts a stage's clock."""
        if step == 0:
            self._began = time.monotonic()
        if self._on_progress is not None:
            seconds = time.monotonic() - self._began
            self._on_progress(Progress(stage=stage, step=step, num_steps=num_steps, seconds=seconds))
