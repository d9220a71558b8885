"""Many clips from a file of requests, by one or several workers; what is finished is not done again.

Every line of the file is one request: the fields of `GenerationRequest` as JSON, and perhaps a `name` for
the file. A manifest in the output folder has a line for every clip as it is finished or fails. A run that is
begun again with the same file reads it and goes on with what is missing, failed or has changed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from soundstage.core.errors import RequestError, SoundstageError
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
KIND = "any prompt"

EngineName = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One line of the file."""

    line: int  # from 1
    name: str  # of the clip's file, without its ending
    fields: Mapping[str, Any]  # of the request
    model: str

    @property
    def key(self) -> str:
        """Say what would be made: another request or model has another key."""
        spelled = json.dumps([self.model, self.fields], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(spelled.encode()).hexdigest()[:16]

    def path(self, folder: Path) -> Path:
        """Name the clip's file."""
        return folder / f"{self.name}.mp4"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a line."""

    line: int
    name: str
    key: str
    error: str | None = None  # None: the clip is there
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Write it as plain data for the manifest."""
        status = "done" if self.error is None else "failed"
        plain = {"line": self.line, "name": self.name, "key": self.key, "status": status}
        return plain | ({"seconds": self.seconds} if self.error is None else {"error": self.error})


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What every worker needs to know; plain data, so that it can be sent to another machine."""

    model: str
    folder: str
    device: str = "auto"
    dtype: str | None = None
    text_encoder: str | None = None
    placing: Placing = field(default_factory=Placing)
    requests: tuple[GenerationRequest, ...] = ()  # of which the largest decides where weights are


Engine = Callable[[Workplace, Sequence[Job], int | None], Iterator[Outcome]]


def read_jobs(file: Path, model: str) -> list[Job]:
    """Read a file of requests; what is in them is checked when their turn comes.

    Raises:
        RequestError: The file cannot be read, a line is no JSON object, or two clips have the same name.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read {file}: {error}") from error
    jobs = [_read_line(file, number, text, model) for number, text in enumerate(lines, 1) if text.strip()]
    if not jobs:
        raise RequestError(f'{file} has no request; write one per line, such as {{"prompt": "a ball falls"}}')
    seen: dict[str, int] = {}
    for job in jobs:
        if job.name in seen:
            raise RequestError(f"{file}: lines {seen[job.name]} and {job.line} are both named {job.name!r}")
        seen[job.name] = job.line
    return jobs


def _read_line(file: Path, number: int, text: str, model: str) -> Job:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{file}, line {number} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise RequestError(f"{file}, line {number} is not an object with the fields of a request")
    name = data.pop("name", f"{number:05d}")
    if not isinstance(name, str) or not name or name != Path(name).name or name.startswith("."):
        raise RequestError(f"{file}, line {number}: name {name!r} is not that of a file in the output folder")
    return Job(line=number, name=name, fields=data, model=model)


def requests_of(jobs: Sequence[Job]) -> tuple[GenerationRequest, ...]:
    """Return what jobs ask for, each kind of clip once, whatever its prompt; leave out what is none."""
    kinds = dict[GenerationRequest, None]()
    for job in jobs:
        with suppress(SoundstageError):
            kinds[replace(GenerationRequest.of(job.fields), prompt=KIND, seed=0)] = None
    return tuple(kinds)


def unfinished(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Return the jobs whose clip is not there, or is that of another request."""
    done = {entry["name"]: entry["key"] for entry in _manifest(folder) if entry.get("status") == "done"}
    return [job for job in jobs if done.get(job.name) != job.key or not job.path(folder).is_file()]


def _manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """Read what earlier runs did; a line that a crash cut short counts as not written."""
    path = folder / MANIFEST
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def run_batch(
    jobs: Sequence[Job], place: Workplace, *, engine: Engine, workers: int | None = None
) -> Iterator[Outcome]:
    """Make the clips of jobs and write each outcome into the manifest before it is yielded.

    A job that fails does not keep the others from being done.

    Raises:
        SoundstageError: No job can be done: the model cannot be loaded, or the engine is missing.
    """
    with (Path(place.folder) / MANIFEST).open("a", encoding="utf-8") as manifest:
        if manifest.tell():
            manifest.write("\n")  # ends a line that a crash may have cut short; empty lines mean nothing
        for outcome in engine(place, jobs, workers):
            manifest.write(json.dumps(outcome.to_dict(), ensure_ascii=False) + "\n")
            manifest.flush()
            os.fsync(manifest.fileno())
            yield outcome


class Worker:
    """Keeps a model loaded and makes clip after clip."""

    def __init__(self, place: Workplace) -> None:
        from soundstage.pipelines.pipeline import Pipeline

        self.folder = Path(place.folder)
        self.pipeline = Pipeline.load(
            place.model,
            device=place.device,
            dtype=place.dtype,
            text_encoder=None if place.text_encoder is None else Path(place.text_encoder),
            placing=place.placing,
            requests=place.requests,
        )

    def make(self, job: Job) -> Outcome:
        """Make one clip; whatever goes wrong with it, and even with us, becomes its outcome."""
        import time

        begin = time.monotonic()
        try:
            request = GenerationRequest.of(job.fields)
            path = job.path(self.folder)
            if self.pipeline.comes_in_parts(request):
                self.pipeline.stream(request).save(path)
            else:
                self.pipeline(request).save(path)
        except SoundstageError as error:
            return Outcome(line=job.line, name=job.name, key=job.key, error=str(error))
        except Exception as error:
            logger.exception("line %d", job.line)
            self._recover()
            reason = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
            return Outcome(line=job.line, name=job.name, key=job.key, error=reason)
        seconds = round(time.monotonic() - begin, 3)
        return Outcome(line=job.line, name=job.name, key=job.key, seconds=seconds)

    def _recover(self) -> None:
        """Give back what a clip that broke off has left on the device."""
        import gc

        import torch

        gc.collect()
        if self.pipeline.components.device.type == "cuda":
            torch.cuda.empty_cache()


def run_here(place: Workplace, jobs: Sequence[Job], workers: int | None) -> Iterator[Outcome]:
    """Work in this process, one clip after another."""
    if workers not in (None, 1):
        raise RequestError(f"workers={workers} need an engine for several, such as --engine ray")
    worker = Worker(place)
    yield from map(worker.make, jobs)


def run_on_ray(place: Workplace, jobs: Sequence[Job], workers: int | None) -> Iterator[Outcome]:
    """Work on a Ray cluster: the one that RAY_ADDRESS names, or one on this machine.

    Every worker has a GPU if the cluster has any, and loads the model once. The output folder must be one
    that all machines share. A worker that dies fails its job, and takes no further ones.

    Raises:
        RequestError: Ray is not installed, or there are fewer GPUs than workers.
    """
    try:
        import ray
    except ImportError as error:
        raise RequestError("engine 'ray' needs Ray: pip install 'soundstage[batch]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus and workers is not None and workers > gpus:  # the others would wait for a GPU forever
        raise RequestError(f"workers={workers} take a GPU each, and the cluster has {gpus}; ask for {gpus}")
    count = min(workers or gpus or 1, len(jobs))
    remote = ray.remote(num_gpus=1 if gpus else 0)(Worker)
    actors = [remote.remote(place) for _ in range(count)]
    try:
        yield from _on_actors(ray, actors, jobs)
    finally:
        for actor in actors:  # else they keep their GPUs as long as this process lives
            ray.kill(actor)


def _on_actors(ray: Any, actors: Sequence[Any], jobs: Iterable[Job]) -> Iterator[Outcome]:
    """Hand every actor its next job as it finishes one."""
    waiting = iter(jobs)
    running: dict[Any, tuple[Any, Job]] = {}
    for actor, job in zip(actors, waiting, strict=False):
        running[actor.make.remote(job)] = (actor, job)
    while running:
        (finished,), _ = ray.wait(list(running))
        actor, job = running.pop(finished)
        try:
            yield ray.get(finished)
        except ray.exceptions.RayError as error:  # it crashed, was ended for want of memory, or never began
            reason = f"its worker died: {_last_line(error)}"
            yield Outcome(line=job.line, name=job.name, key=job.key, error=reason)
            if not running:
                for left in waiting:
                    yield Outcome(line=left.line, name=left.name, key=left.key, error="no worker is left")
            continue
        following = next(waiting, None)
        if following is not None:
            running[actor.make.remote(following)] = (actor, following)


def _last_line(error: Exception) -> str:
    """Return what an error says in the end, without the way there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


ENGINES: dict[str, Engine] = {"local": run_here, "ray": run_on_ray}
