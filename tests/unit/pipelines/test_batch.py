"""Batches: what is finished is not done again, what fails does not stop the rest."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

import tiny
from soundstage.cli.main import run
from soundstage.core.errors import RequestError
from soundstage.media.mux import read_metadata
from soundstage.pipelines.batch import (
    ENGINES,
    MANIFEST,
    EngineName,
    Job,
    Worker,
    Workplace,
    read_jobs,
    run_batch,
    unfinished,
)

SMALL = {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_embedded(tmp_path_factory.mktemp("batch") / "tiny.safetensors")


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_lines_become_jobs_with_names(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "x", "name": "ball"}, "", {"prompt": "y"})
    jobs = read_jobs(file, "embedded")
    assert [(job.line, job.name, dict(job.fields)) for job in jobs] == [
        (1, "ball", {"prompt": "x"}),
        (3, "00003", {"prompt": "y"}),
    ]
    assert jobs[0].key != Job(line=1, name="ball", fields={"prompt": "x"}, model="other").key


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1 is not JSON"),
        (["[1]"], "line 1 is not an object"),
        (['{"prompt": "x", "name": "../y"}'], "name '../y' is not that of a file"),
        (
            ['{"prompt": "x", "name": "a"}', '{"prompt": "y", "name": "a"}'],
            "lines 1 and 2 are both named 'a'",
        ),
        ([""], "has no request"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_jobs(write(tmp_path / "a.jsonl", *lines), "embedded")


def test_a_batch_goes_on_after_failures_and_does_nothing_twice(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"prompt": "a red ball", **SMALL}
    file = write(
        tmp_path / "a.jsonl",
        {**good, "name": "one"},
        {**good, "sead": 1},
        {**good, "name": "two", "seed": 5},
    )
    out = tmp_path / "clips"
    arguments = ["batch", str(file), "--out", str(out), "--model", str(model), "--device", "cpu"]
    assert run(arguments) == 2
    printed, said = capsys.readouterr()
    results = [json.loads(line) for line in printed.splitlines()]
    assert [(r["line"], r["status"]) for r in results] == [(1, "done"), (2, "failed"), (3, "done")]
    assert "a request has no 'sead' (did you mean 'seed'?)" in results[1]["error"]
    assert "1 of 3 clips failed" in said
    assert sorted(path.name for path in out.iterdir()) == [MANIFEST, "one.mp4", "two.mp4"]
    assert read_metadata(out / "two.mp4")["request"]["seed"] == 5
    before = (out / "one.mp4").stat().st_mtime_ns

    # mend one line, lose one clip, and let a crash have cut the manifest short
    write(file, {**good, "name": "one"}, {**good, "seed": 1}, {**good, "name": "two", "seed": 5})
    (out / "two.mp4").unlink()
    with (out / MANIFEST).open("a") as manifest:
        manifest.write('{"line": 1, "na')
    assert run(arguments) == 0
    printed, said = capsys.readouterr()
    assert [json.loads(line)["line"] for line in printed.splitlines()] == [2, 3]
    assert "1 of 3 clips are there" in said
    assert (out / "one.mp4").stat().st_mtime_ns == before

    def refuse(*_: object) -> None:
        raise AssertionError("a model was loaded for nothing")

    monkeypatch.setattr(Worker, "__init__", refuse)
    assert run(arguments) == 0
    assert capsys.readouterr().out == ""


def test_a_changed_request_is_made_again(tmp_path: Path) -> None:
    job = Job(line=1, name="a", fields={"prompt": "x"}, model="m")
    write(tmp_path / MANIFEST, {"line": 1, "name": "a", "key": job.key, "status": "done"})
    job.path(tmp_path).touch()
    assert unfinished([job], tmp_path) == []
    changed = Job(line=1, name="a", fields={"prompt": "y"}, model="m")
    assert unfinished([changed], tmp_path) == [changed]


def test_several_workers_need_an_engine_for_them(tmp_path: Path) -> None:
    place = Workplace(model="embedded", folder=str(tmp_path))
    with pytest.raises(RequestError, match="workers=2 need an engine for several"):
        list(run_batch([], place, engine=ENGINES["local"], workers=2))


def test_ray_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    place = Workplace(model="embedded", folder=str(tmp_path))
    with pytest.raises(RequestError, match=r"pip install 'soundstage\[batch\]'"):
        list(run_batch([], place, engine=ENGINES["ray"]))


def test_every_engine_can_be_chosen() -> None:
    assert set(get_args(EngineName)) == ENGINES.keys()


@pytest.mark.slow
def test_a_cluster_makes_the_same_clips(tmp_path: Path, model: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        jobs = [
            Job(line=i, name=str(i), fields={"prompt": "a ball", "seed": i, **SMALL}, model=str(model))
            for i in range(1, 4)
        ]
        folders = {}
        for engine, workers in (("ray", 2), ("local", None)):
            folders[engine] = tmp_path / engine
            folders[engine].mkdir()
            place = Workplace(model=str(model), folder=str(folders[engine]), device="cpu")
            outcomes = list(run_batch(jobs, place, engine=ENGINES[engine], workers=workers))
            assert sorted(o.line for o in outcomes if o.error is None) == [1, 2, 3]
        for job in jobs:
            assert job.path(folders["ray"]).read_bytes() == job.path(folders["local"]).read_bytes()
    finally:
        ray.shutdown()


def test_the_model_is_placed_as_the_flags_say_and_for_what_is_to_be_made(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from soundstage.pipelines.pipeline import Pipeline

    load, asked = Pipeline.load, {}

    def noting(*args: Any, **kwargs: Any) -> Pipeline:
        asked.update(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(Pipeline, "load", noting)
    file = write(
        tmp_path / "a.jsonl", {"prompt": "a red ball", **SMALL}, {"prompt": "nothing", "num_frame": 9}
    )
    flags = ("--quantize", "int8", "--offload", "stream", "--device", "cpu")
    assert run(["batch", str(file), "--out", str(tmp_path / "out"), "--model", str(model), *flags]) == 2
    assert (asked["placing"].quantize, asked["placing"].offload) == ("int8", "stream")
    assert [request.num_frames for request in asked["requests"]] == [9]
    assert (tmp_path / "out" / "00001.mp4").is_file()
