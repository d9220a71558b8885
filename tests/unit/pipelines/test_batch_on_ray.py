"""Jobs dealt out to Ray's actors; Ray itself stands in another process's place, see `fake_ray.py`."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fake_ray import Death, FakeRay, OutOfMemoryError, RayActorError
from soundstage.core.errors import RequestError
from soundstage.pipelines import batch
from soundstage.pipelines.batch import MANIFEST, Job, Outcome, Workplace, run_batch, run_on_ray, unfinished

DIED = RayActorError(
    "The actor died unexpectedly.\n\tpid: 7\nIts worker process has died. Exit type: SYSTEM_ERROR"
)
DEATHS = {
    "crashes": DIED,
    "swells": OutOfMemoryError("Task was killed due to the node running low on memory."),
}


class Clerk:
    """Makes a file for every job, unless its name says otherwise."""

    made: list[tuple[int, str]]  # number of the worker, name of the job
    begun: int
    dying: set[str]

    def __init__(self, place: Workplace) -> None:
        if place.model == "missing":
            raise RequestError("missing does not exist")
        self.place, self.number = place, Clerk.begun
        Clerk.begun += 1

    def make(self, job: Job) -> Outcome:
        Clerk.made.append((self.number, job.name))
        if job.name in Clerk.dying:
            raise Death(DEATHS[job.name])
        if job.name == "bad":
            return Outcome(line=job.line, name=job.name, key=job.key, error="num_frames=2 is not 8 k + 1")
        job.path(Path(self.place.folder)).write_text(job.key)
        return Outcome(line=job.line, name=job.name, key=job.key, seconds=1.0)


@pytest.fixture(autouse=True)
def clerk(monkeypatch: pytest.MonkeyPatch) -> None:
    Clerk.made, Clerk.begun, Clerk.dying = [], 0, set(DEATHS)
    monkeypatch.setattr(batch, "Worker", Clerk)


def ray(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeRay:
    fake = FakeRay(**options)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def jobs(*names: str, model: str = "m") -> list[Job]:
    return [Job(line=i, name=name, fields={"seed": i}, model=model) for i, name in enumerate(names, 1)]


def done(folder: Path, work: list[Job], workers: int | None = None) -> list[tuple[str, str | None]]:
    place = Workplace(model=work[0].model, folder=str(folder))
    outcomes = list(run_batch(work, place, engine=run_on_ray, workers=workers))
    by_name = {job.name: job for job in work}
    assert all((o.line, o.key) == (by_name[o.name].line, by_name[o.name].key) for o in outcomes)
    return [(outcome.name, outcome.error) for outcome in outcomes]


def test_jobs_begin_in_order_and_come_back_as_they_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ray(monkeypatch, choose=lambda references: references[-1])  # the one begun last is done first
    assert done(tmp_path, jobs("a", "b", "c", "d"), workers=2) == [(n, None) for n in ("b", "c", "d", "a")]
    assert Clerk.made == [(1, "b"), (1, "c"), (1, "d"), (0, "a")]
    assert [json.loads(line)["name"] for line in (tmp_path / MANIFEST).read_text().splitlines()] == [*"bcda"]
    assert fake.killed == fake.actors  # they would keep their GPUs
    assert fake.begun == 1
    assert done(tmp_path, jobs("e"), workers=2) == [("e", None)]
    assert fake.begun == 1  # the cluster is there already


@pytest.mark.parametrize(
    ("gpus", "workers", "each", "count"),
    [(0, None, 0, 1), (0, 2, 0, 2), (3, None, 1, 3), (3, 2, 1, 2), (8, None, 1, 4)],
)
def test_every_worker_has_a_gpu_if_there_are_any(
    gpus: int, workers: int | None, each: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ray(monkeypatch, gpus=gpus)
    assert done(tmp_path, jobs("a", "b", "c", "d"), workers) == [(n, None) for n in "abcd"]
    assert fake.options == [{"num_gpus": each}]
    assert len(fake.actors) == count  # no more than jobs


def test_more_workers_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ray(monkeypatch, gpus=2)
    with pytest.raises(RequestError, match="workers=3 take a GPU each, and the cluster has 2; ask for 2"):
        done(tmp_path, jobs("a", "b", "c"), workers=3)
    assert not fake.actors


def test_a_job_that_fails_leaves_its_worker_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray(monkeypatch)
    assert done(tmp_path, jobs("bad", "b")) == [("bad", "num_frames=2 is not 8 k + 1"), ("b", None)]
    assert Clerk.made == [(0, "bad"), (0, "b")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crashes", "its worker died: Its worker process has died. Exit type: SYSTEM_ERROR"),
        ("swells", "its worker died: Task was killed due to the node running low on memory."),
    ],
)
def test_a_worker_that_dies_fails_its_job_and_the_others_go_on(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ray(monkeypatch)
    assert done(tmp_path, jobs(name, "b", "c", "d"), workers=2) == [
        (name, reason),
        ("b", None),
        ("c", None),
        ("d", None),
    ]
    assert Clerk.made == [(0, name), (1, "b"), (1, "c"), (1, "d")]
    assert fake.killed == fake.actors


def test_begun_again_it_makes_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray(monkeypatch)
    work = jobs("a", "crashes", "c", "d")
    reasons = dict(done(tmp_path, work))
    assert reasons["a"] is None
    assert reasons["c"] == reasons["d"] == "no worker is left"
    missing = unfinished(work, tmp_path)
    assert [job.name for job in missing] == ["crashes", "c", "d"]
    Clerk.made.clear()
    Clerk.dying.clear()
    assert done(tmp_path, missing) == [("crashes", None), ("c", None), ("d", None)]
    assert [name for _, name in Clerk.made] == ["crashes", "c", "d"]
    assert unfinished(work, tmp_path) == []


def test_a_model_that_cannot_be_loaded_is_the_reason_of_every_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray(monkeypatch)
    assert done(tmp_path, jobs("a", "b", "c", model="missing"), workers=2) == [
        ("a", "its worker died: RequestError: missing does not exist"),
        ("b", "its worker died: RequestError: missing does not exist"),
        ("c", "no worker is left"),
    ]


def test_actors_end_with_a_run_that_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ray(monkeypatch)
    place = Workplace(model="m", folder=str(tmp_path))
    outcomes = run_batch(jobs("a", "b"), place, engine=run_on_ray)
    assert next(outcomes).name == "a"
    outcomes.close()
    assert fake.killed == fake.actors != []
    assert len((tmp_path / MANIFEST).read_text().splitlines()) == 1
