import json

import pytest

import tiny
from soundstage.cli.main import run
from soundstage.evaluation import suite
from soundstage.pipelines import placement
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.request import GenerationRequest


def refused(capsys, *flags):
    """The one line that a refused call writes."""
    assert run(["evaluate", *map(str, flags)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_clips_must_be_a_folder(capsys, tmp_path):
    line = refused(capsys, "--report", tmp_path / "out", "--clips", tmp_path / "missing")
    assert "is not a folder" in line


def test_ablation_needs_a_model(capsys, tmp_path):
    line = refused(capsys, "--report", tmp_path, "--clips", tmp_path, "--ablate-cross-attention")
    assert "needs a model" in line


def test_unknown_model_is_refused_before_anything_is_made(capsys, tmp_path):
    line = refused(capsys, "--report", tmp_path, "--model", "embeded", "--quiet")
    assert "embeded" in line
    assert list(tmp_path.iterdir()) == []


def test_report_folder_must_be_writable(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot make the folder" in refused(capsys, "--report", tmp_path / "file" / "out")


@pytest.mark.parametrize("as_json", [True, False])
def test_stored_clips_are_measured_and_reported(capsys, tmp_path, monkeypatch, world_file, as_json):
    monkeypatch.setattr(suite, "validate", lambda cases, config: [])
    path, scene, _ = world_file
    flags = ["--report", str(tmp_path), "--clips", str(path.parent), "-n", "1", "--seed", "9", "--quiet"]
    assert run(["evaluate", *flags, *(["--json"] if as_json else [])]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "report.html").is_file()
    if as_json:
        (clip,) = json.loads(out)["groups"]["clips"]["clips"]
        assert clip["found"]["colour"] == scene.colour
    else:
        assert "colour as said" in out
        assert str(tmp_path / "report.html") in out.replace("\n", "")


def test_a_batch_that_memory_cannot_hold_is_refused_before_anything_is_made(tmp_path, capsys, monkeypatch):
    """Memory that suffices for one clip and not for many."""
    model = tiny.write_embedded(tmp_path / "m.safetensors")
    pipeline = Pipeline.load(model, device="cpu")
    clip = GenerationRequest(prompt="a")
    most = {}
    original = placement._within_host

    def within(task, job, available):
        most[job.num_clips] = max(phase.least(exact=False) for phase in task.phases)
        return original(task, job, available)

    monkeypatch.setattr(placement, "_within_host", within)
    for number in (1, 64):
        pipeline.plan(clip, num_clips=number)
    assert most[64] > 2 * most[1]
    monkeypatch.setattr(placement, "available_memory", lambda: 2 * most[1])
    folder = tmp_path / "report"
    flags = ["--report", folder, "--model", model, "--device", "cpu", "--quiet"]
    assert "fewer frames or clips at once" in refused(capsys, *flags, "--batch", "64")
    assert list(folder.iterdir()) == []
