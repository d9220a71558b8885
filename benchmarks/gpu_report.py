"""What `gpu.py` measures with and writes down: seconds, peak memory, rows of a table."""

import gc
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "src"))  # the machine need not have the package installed
GIB = 2**30
# Seconds of a forward at the ceilings of one device: matrix products, attention and fused element-wise
# traffic, one after the other. Counted, with 788 (bf16), 1450 (fp8) and 650 (attention) TFLOP/s on an H200.
FLOORS = {
    ("H200", "1280x704x121", "bf16"): 0.760,
    ("H200", "1280x704x121", "fp8"): 0.547,
    ("H200", "1920x1088x121", "bf16"): 2.49,
    ("H200", "1920x1088x121", "fp8"): 2.00,
    ("H100", "1280x704x121", "bf16"): 0.831,
    ("H100", "1280x704x121", "fp8"): 0.593,
    ("H100", "1920x1088x121", "bf16"): 2.69,
    ("H100", "1920x1088x121", "fp8"): 2.14,
}
logger = logging.getLogger("gpu")


@dataclass(frozen=True)
class Size:
    """A clip."""

    width: int
    height: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"


@dataclass(kw_only=True)
class Row:
    """A line of the table."""

    size: str
    what: str
    seconds: float | None = None
    rounds: int = 0
    tflop: float | None = None
    ceiling: float | None = None  # TFLOP/s that were measured for such products
    peak_gib: float | None = None  # above the weights and what is kept between calls
    all_gib: float | None = None  # above the weights, kept text keys and values and RoPE tables included
    floor: float | None = None  # seconds
    peer: str = ""  # the row that it is compared with
    peer_times: int = 1  # of which it replaces so many
    note: str = ""


@dataclass
class Bench:
    """What sections share and fill."""

    device: torch.device
    tiny: bool
    out: Path | None
    ends: float
    rows: list[Row] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[str, float]] = field(default_factory=dict)  # size: kind: seconds
    ceilings: dict[str, float] = field(default_factory=dict)  # TFLOP/s of matrix products
    transformer: Any = None  # the network that sections go on with
    kernels: str = "auto"  # the set of fused steps; "torch" where the others failed
    config: Any = None
    weights_gib: float = 0.0  # of that network; 0, where it is not there
    commit: str = ""  # of what runs here, where that cannot be asked

    @property
    def sizes(self) -> list[Size]:
        return (
            [Size(64, 64, 9), Size(96, 64, 9)] if self.tiny else [Size(1280, 704, 121), Size(1920, 1088, 121)]
        )

    @property
    def small(self) -> Size:
        """The first stage of a two-stage run, where starting kernels takes as long as running them."""
        return Size(64, 64, 9) if self.tiny else Size(640, 352, 121)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def floor(self, size: Size, form: str) -> float | None:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return next(
            (s for (card, of, f), s in FLOORS.items() if card in name and (of, f) == (str(size), form)), None
        )

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(
        self, run: Callable[[], Any], *, warm: int = 0, rounds: int = 5, seconds: float = 15.0
    ) -> list[float]:
        """Time some calls; fewer where they are slow, and one where it is only to be seen that it runs."""
        rounds = 1 if self.tiny else rounds
        for _ in range(warm):
            run()
        times: list[float] = []
        begun = time.monotonic()
        while len(times) < rounds and (not times or time.monotonic() - begun + times[-1] < seconds):
            self.sync()
            before = time.perf_counter()
            run()
            self.sync()
            times.append(time.perf_counter() - before)
        return times

    def row(self, size: Size | str, what: str, run: Callable[[], Any], **known: Any) -> Row:
        """Measure one line: seconds and peak memory."""
        timing = {name: known.pop(name) for name in ("rounds", "seconds") if name in known}
        run()  # what is kept for later calls is made now, and no part of the peak
        with self.peak() as peak:
            times = self.time(run, **timing)
        row = Row(size=str(size), what=what, seconds=statistics.median(times), rounds=len(times), **known)
        row.peak_gib = peak[0] if peak else None
        if peak and self.transformer is not None and self.weights_gib:
            row.all_gib = peak[1] - self.weights_gib
        self.rows.append(row)
        logger.info("%s %s: %.4f s", row.size, row.what, row.seconds)
        return row

    @contextmanager
    def peak(self) -> Iterator[list[float]]:
        """Measure by how much memory rises above what is allocated now."""
        result: list[float] = []
        if self.device.type != "cuda":
            yield result
            return
        self.free()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield result
        highest = torch.cuda.max_memory_allocated(self.device)
        result += [(highest - before) / GIB, highest / GIB]

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def found(self, size: Size | str, what: str) -> Row | None:
        return next((r for r in self.rows if (r.size, r.what) == (str(size), what)), None)


def save(bench: Bench) -> None:
    if bench.out is None:
        return
    bench.out.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine(bench.device),
        "commit": bench.commit or commit(),
        "facts": bench.facts,
        "ceilings": bench.ceilings,
        "parts": bench.parts,
        "rows": [asdict(row) for row in bench.rows],
    }
    for name, text in (
        ("gpu.json", json.dumps(record, indent=1)),
        ("gpu.md", "\n".join(table(bench)) + "\n"),
    ):
        temporary = bench.out / f"{name}.part"
        temporary.write_text(text)
        temporary.replace(bench.out / name)


def table(bench: Bench) -> list[str]:
    lines = [
        f"{machine(bench.device)}; torch {torch.__version__}; commit {bench.commit or commit()}; "
        "random weights, batch 1",
        *(f"- {name}: {fact}" for name, fact in bench.facts.items()),
        "- GiB: highest allocation above weights and what is kept between calls; all: above weights alone",
        "",
        "| clip | what | seconds (rounds) | TFLOP/s | ceiling | x floor | x diffusers | GiB | all | note |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in bench.rows:
        speed = row.tflop / row.seconds if row.tflop and row.seconds else None
        share = speed / row.ceiling if speed and row.ceiling else None
        peer = bench.found(row.size, row.peer)
        ratio = (
            row.seconds / (row.peer_times * peer.seconds) if peer and peer.seconds and row.seconds else None
        )
        cells = [
            row.size,
            row.what,
            _shown(row.seconds, ".4f" if (row.seconds or 1) < 0.1 else ".3f") + f" ({row.rounds})",
            _shown(speed, ".0f" if (speed or 0) > 10 else ".3f"),
            _shown(share, ".0%"),
            _shown(row.seconds / row.floor if row.floor and row.seconds else None, ".2f"),
            _shown(ratio, ".2f"),
            _shown(row.peak_gib, ".2f"),
            _shown(row.all_gib, ".2f"),
            row.note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for size, parts in bench.parts.items():
        calls = parts.get("calls", 0)
        shown = ", ".join(f"{kind} {s * 1e3:.1f} ms" for kind, s in parts.items() if kind != "calls")
        lines += ["", f"One forward at {size} by kind: {shown}; {calls:.0f} kernels."]
    return lines


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def commit() -> str:
    """Ask git; a copy of the files may have none, and a machine may be without it."""
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        asked = ""
    return asked or os.environ.get("COMMIT", "unknown")


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}"
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if cpuinfo.exists()
        else []
    )
    name = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"
