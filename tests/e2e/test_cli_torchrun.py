"""`soundstage generate` under torchrun: several processes write the file that one writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from soundstage.cli.main import run
from soundstage.media.mux import read_metadata
from soundstage.media.video import read_clip

PROMPT = "a red ball bounces on a wooden floor"
SMALL = ["--seed", "7", "--num-frames", "9", "--steps", "4", "--device", "cpu", "--json"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_processes_write_the_clip_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    sharing = ["--sequence-parallel", "2", "--sequence-exchange", "ring"]
    command = [*LAUNCH, "-m", "soundstage", "generate", PROMPT, "-o", str(two), *SMALL, *sharing]
    together = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run(["generate", PROMPT, "-o", str(one), *SMALL]) == 0  # meanwhile
    capsys.readouterr()
    printed, said = together.communicate(timeout=600)
    assert together.returncode == 0, said
    assert [json.loads(line)["path"] for line in printed.splitlines()] == [
        str(two)
    ]  # the first alone reports
    assert "tokens shared by 2 processes: ring, attention flash-cpu" in said
    alone, made = read_clip(one), read_clip(two)
    assert made.frames.shape == (9, 64, 64, 3)
    assert alone.frames.float().std() > 10
    differences = (made.frames.int() - alone.frames.int()).abs().float()
    assert differences.mean() < 4  # of 255: a few pixels rounded the other way, and H.264 decides otherwise
    scale = float(alone.waveform.abs().max())
    assert scale > 0.1  # two steps would be silence, which shows nothing
    torch.testing.assert_close(made.waveform, alone.waveform, atol=0.01 * scale, rtol=0)
    assert read_metadata(two)["request"] == read_metadata(one)["request"]


def test_of_several_processes_one_shows_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        sharing = ["--sequence-parallel", "2", "--dry-run"]
        assert run(["generate", PROMPT, "-o", str(tmp_path / "a.mp4"), *SMALL, *sharing]) == 0
        shown.append(len(capsys.readouterr().out.splitlines()))
    assert shown == [1, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--shard-weights"],
            "error: shard_weights is for several processes, and there is one; begin with `tor",
        ),
        (["--sequence-exchange", "ring", "--dry-run"], "error: sequence_exchange=ring is for several"),
        (
            ["--sequence-parallel", "-2", "--shard-weights"],
            "sequence_parallel=-2, shard_weights are for several",
        ),
    ],
)
def test_flags_for_several_processes_are_refused_for_one(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", PROMPT, "-o", str(tmp_path / "a.mp4"), *SMALL, *flags]) == 2
    assert message in capsys.readouterr().err
