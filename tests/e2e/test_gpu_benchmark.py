"""The benchmark for GPUs runs from end to end at a tiny size, so that it still does when there is a GPU."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUICK = ("ceilings", "bf16", "attention", "graphs", "step_cache", "fp8", "diffusers", "video_vae", "sound")
CACHED = [f"20 steps, bf16, small, step cache {threshold}" for threshold in ("0.02", "0.05", "0.1")]


def run(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OUT": str(folder)}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", "--tiny", "--device", "cpu", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "gpu.json").read_text())


def lines_of(rows):
    return {row["what"] for row in rows}


def test_transformer_and_sound_are_measured(tmp_path):
    printed, record = run(tmp_path, "--only", *QUICK)
    rows = record["rows"]
    assert {
        "forward, bf16, nothing kept",
        "forward, bf16, first of a run",
        "forward, bf16, plain PyTorch",
        "forward, bf16",
        "guided step of 4 passes, bf16",
        "forward, bf16, small",
        "20 steps, bf16, small",
        *CACHED,
        "forward, fp8",
        "guided step of 4 passes, fp8",
        "forward, bf16, attention sdpa",
        "forward, bf16, attention flash",
        "forward, bf16, attention math",
        "diffusers: forward, bf16",
        "video decoder, whole",
        "video decoder, streamed",
        "diffusers: video decoder, whole",
        "sound decoder, float32",
        "vocoder, float32",
    } == lines_of(rows)
    assert all(row["seconds"] > 0 for row in rows)
    assert {row["size"] for row in rows} == {"64x64x9", "96x64x9", "1 s"}
    assert record["parts"]["64x64x9"]["matrix products"] > 0
    assert any("attention" in row["note"] and "kernels torch" in row["note"] for row in rows)
    notes = {row["what"]: row["note"] for row in rows}
    assert re.match(r"keeps \d+\.\d\d GiB of one text", notes["forward, bf16, first of a run"])
    left_out = [int(re.match(r"(\d+)% left out; latents away by: picture \d", notes[w])[1]) for w in CACHED]
    assert left_out == sorted(left_out)
    assert left_out[0] < left_out[-1] <= 35  # the most that may be reused
    (picture,) = re.findall(r"velocities away from bf16 by: picture ([\d.]+)%", notes["forward, fp8"])
    assert 0 < float(picture) < 15  # the bound of the format, on a network of two small blocks
    table = printed.strip().splitlines()
    assert sum(line.startswith("| ") for line in table) == len(rows) + 1
    assert (tmp_path / "gpu.md").read_text() == printed


@pytest.mark.slow
def test_every_section_runs(tmp_path):
    _, record = run(tmp_path)
    assert {"diffusers: forward, bf16", "diffusers: video decoder, whole"} <= lines_of(record["rows"])
    assert {"forward, bf16, compiled", "forward, bf16, attention math"} <= lines_of(record["rows"])


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("gpu_report", None)


@pytest.fixture
def bench(gpu, tmp_path):
    return gpu.Bench(device=torch.device("cpu"), tiny=False, out=tmp_path, ends=time.monotonic() + 60)


def test_a_section_that_fails_or_takes_too_long_loses_no_other(gpu, bench, monkeypatch):
    def fail(bench):
        bench.row("some size", "before it failed", lambda: None)
        raise torch.OutOfMemoryError("no memory for 3 GiB\nand more")

    def hang(_):
        time.sleep(30)

    monkeypatch.setattr(
        gpu, "SECTIONS", {"fail": (fail, 20), "hang": (hang, 3.5), "last": (lambda b: None, 9)}
    )
    gpu.signal.signal(gpu.signal.SIGALRM, gpu._out_of_time)
    begun = time.monotonic()
    for name in gpu.SECTIONS:
        gpu.run_section(bench, name)
    assert time.monotonic() - begun < 20
    assert bench.facts == {
        "fail": "failed: OutOfMemoryError: no memory for 3 GiB",
        "hang": "cut off after 4 s",
    }
    assert [row.what for row in bench.rows] == ["before it failed"]
    assert "before it failed" in (bench.out / "gpu.md").read_text()
    bench.ends = time.monotonic() + 1
    gpu.run_section(bench, "last")
    assert bench.facts["last"] == "left out: no time left"


def test_fused_steps_that_fail_are_left_out_and_everything_goes_on(gpu, bench, monkeypatch):
    bench.tiny = True
    network = gpu.build_transformer(bench)
    gpu.use_attention(network, gpu.choose_attention("auto", bench.device, bench.dtype))
    assert "from plain PyTorch's velocities by: picture 0.00%" in gpu.try_kernels(bench, network)
    assert bench.kernels == "auto"

    def fail(network, kernels):
        if kernels is broken:
            raise RuntimeError("the compiler of kernels is missing")

    broken = object()
    monkeypatch.setattr(gpu, "choose_kernels", lambda name, _: broken if name == "auto" else name)
    monkeypatch.setattr(gpu, "use_kernels", fail)
    assert gpu.try_kernels(bench, network) == ""
    assert bench.kernels == "torch"
    assert "the compiler of kernels is missing" in bench.facts["kernels"]


def test_the_commit_is_told_where_git_cannot(gpu, bench, monkeypatch):
    report = sys.modules["gpu_report"]

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(report.subprocess, "run", no_git)
    monkeypatch.delenv("COMMIT", raising=False)
    assert report.commit() == "unknown"
    bench.commit = "1234567"
    assert "commit 1234567" in report.table(bench)[0]
    report.save(bench)
    assert json.loads((bench.out / "gpu.json").read_text())["commit"] == "1234567"


def test_rows_say_share_of_ceiling_and_ratio_to_the_peer(gpu, bench):
    report = sys.modules["gpu_report"]
    bench.rows = [
        report.Row(
            size="s", what="ours", seconds=0.5, tflop=200, ceiling=800, floor=0.4, peer="theirs", rounds=3
        ),
        report.Row(size="s", what="theirs", seconds=0.625),
        report.Row(size="s", what="guided", seconds=1.5, peer="theirs", peer_times=4),
        report.Row(size="other", what="alone", seconds=0.01, peer="theirs"),
    ]
    lines = [line for line in report.table(bench) if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0][2:7] == ["0.500 (3)", "400", "50%", "1.25", "0.80"]
    assert cells[2][6] == "0.60"
    assert cells[3][2] == "0.0100 (0)"
    assert cells[3][6] == ""


def test_full_size_is_that_of_the_released_model(gpu, bench):
    from soundstage.models.transformer.config import TransformerConfig

    bench.config = TransformerConfig.from_header(gpu.header()["transformer"])
    clip = gpu.make_clip(bench, bench.sizes[0])
    assert clip.num_tokens == (14_080, 126)
    assert gpu.tflop(bench, clip) == pytest.approx(536.7, abs=0.1)
    assert gpu.guided_tflop(bench, clip) / gpu.tflop(bench, clip) == pytest.approx(3.28, abs=0.02)
    assert bench.sizes[1].width == 1920
