"""Training starts from a bare checkout: without tyro, PyAV and what else a lent machine lacks."""

import subprocess
import sys
from pathlib import Path

import pytest

from soundstage.training.__main__ import main
from soundstage.training.export import read_component

ROOT = Path(__file__).parents[2]
ABSENT = ("tyro", "av", "beartype", "diffusers", "gguf", "tensorboard", "rich", "ray", "PIL")
START = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))  # an import of any fails
runpy.run_module("soundstage.training", run_name="__main__", alter_sys=True)
"""
SMALL = (
    "num_steps=2",
    "batch_size=2",
    "settings.num_validation_clips=2",
    "settings.num_statistics_clips=2",
    "settings.stereo_start_clips=2",
    "data.num_frames=17",
)


def train_bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the entry as from a checkout that is not installed."""
    return subprocess.run(
        [sys.executable, "-c", START, *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_recipe_is_trained_where_nothing_but_torch_is_installed(tmp_path: Path) -> None:
    overrides = [part for text in SMALL for part in ("--set", text)]
    done = train_bare(
        "recipes/audio_vae.toml", "--out", str(tmp_path), "--max-minutes", "5", "--threads", "1", *overrides
    )
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path / 'model.safetensors'}" in done.stderr
    assert "audio_vae" in read_component(tmp_path / "model.safetensors")[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--device", "cuda:9"), "device 'cuda:9' is not here"),
        (("--set", "num_step=1"), "num_step"),
        (("--export-only",), "holds no state of a run; train there first"),
        (("--out", __file__), "cannot make the folder"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    status = main([str(ROOT / "recipes" / "audio_vae.toml"), "--out", str(tmp_path), *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert line.startswith("soundstage: error: ")
    assert told in line
    assert not list(tmp_path.iterdir())
