"""Several processes make the clip that one makes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import team_worker
import tiny
from soundstage.core.errors import RequestError
from soundstage.runtime.distributed import Group, join_team, launched

WORKER = Path(team_worker.__file__)
SHARDED = [name for name, (_, setup, _) in team_worker.TEAMS.items() if "shards_weights" in setup]
WHOLE = [name for name in team_worker.TEAMS if name not in SHARDED]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_workers(tmp_path_factory.mktemp("team"), WHOLE)


def run_workers(folder: Path, names: list[str]) -> dict[str, Any]:
    """Make the clips of all teams by the same processes, which take time to start.

    The file's numbers are cast as they are read, whole or by rows.
    """
    model, out = tiny.write_embedded(folder / "tiny.safetensors", dtype=torch.bfloat16), folder / "results.pt"
    most = max(team_worker.TEAMS[name][0] for name in names)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, model, str(rank), out, *names],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(most)
    ]
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * most, "\n".join(said)
    return torch.load(out)


@pytest.mark.parametrize("name", WHOLE)
def test_several_processes_make_the_clip_of_one(results: dict[str, Any], name: str) -> None:
    check(results, name)


@pytest.mark.slow  # importing FSDP takes longer than all the rest
def test_processes_that_share_the_weights_make_the_clip_of_one(tmp_path: Path) -> None:
    results = run_workers(tmp_path, SHARDED)
    for name in SHARDED:
        check(results, name)


def check(results: dict[str, Any], name: str) -> None:
    alone, made = results[name]["alone"], results[name]["made"]
    for expected, got in zip(alone, made, strict=True):
        assert expected.std() > 1e-3
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)  # rounding, through steps and decoders


def test_shares_differ_by_one_at_most() -> None:
    groups = [Group(size=4, rank=rank) for rank in range(4)]
    assert [group.share(10) for group in groups] == [slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 10)]
    assert groups[0].shares(5) == [2, 1, 1, 1]  # nobody is without


def test_a_number_of_processes_that_cannot_be_divided_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("RANK", "0")
    assert launched()
    with (
        pytest.raises(RequestError, match="sequence_parallel=4 does not divide 6 processes; 1, 2, 3, 6 do"),
        join_team(torch.device("cpu"), sequence=4),
    ):
        pass
