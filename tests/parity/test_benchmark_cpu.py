"""The benchmark against diffusers runs, compares the same numbers, and says what it measured."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cpu.py"


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_tiny_configurations_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    table = tmp_path / "table.json"
    configs = ["tiny", "tiny_video_vae", "tiny_vocoder"]
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), "--rounds", "1", "--json", str(table), "--config", *configs]
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = json.loads(table.read_text())
    assert [line["config"] for line in lines] == ["tiny"] * 5 + configs[1:]
    assert all(line["ratio"] > 0 for line in lines)
    compared = [line["difference"] for line in lines if line["difference"] >= 0]
    assert len(compared) == 5
    assert max(compared) < 1e-5, "relative to the largest value, float32"
    assert "| tiny | guided step / 4 forwards |" in capsys.readouterr().out
