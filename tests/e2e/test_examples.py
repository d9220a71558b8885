"""Every example runs, on a tiny random model."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCREEN = 50  # lines


@pytest.fixture
def run_example(tiny_model, monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, str(tiny_model), *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_first_clip(run_example, tmp_path):
    shown = run_example("first_clip.py", tmp_path / "clip.mp4")
    assert "picture (3, 17, " in shown
    assert (tmp_path / "clip.mp4").is_file()


def test_watch_until_done(run_example):
    shown = run_example("watch_and_stop.py", 600)
    assert "denoise: 1 of" in shown
    assert "done: 0.375 seconds of video" in shown


def test_stop_in_time(run_example):
    assert "stopped: more than 0 seconds" in run_example("watch_and_stop.py", 0)


def test_compare_seeds(run_example, tmp_path):
    assert "was the loudest of 3" in run_example("compare_seeds.py", tmp_path / "loudest.mp4")


def test_benchmark_of_generation_prints_a_table(tiny_model, monkeypatch, capsys):
    flags = ["--model", str(tiny_model), "--clips", "2", "--device", "cpu"]
    fields = ["width=32", "height=32", "num_frames=9", "num_inference_steps=1"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *flags, *fields])
    runpy.run_path(str(EXAMPLES.parent / "benchmarks" / "generate.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "32x32, 9 frames at 24 fps" in shown
    for stage in ("load", "encode prompt", "denoise", "decode video", "decode audio", "write"):
        assert f"| {stage} | " in shown


def test_every_example_is_run_here_and_fits_a_screen():
    tested = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tested
        assert len(path.read_text().splitlines()) <= SCREEN
