"""Seconds and peak memory of each stage of a generation, as a table for docs/benchmarks.md.

python benchmarks/generate.py [--model embedded] [--clips 3] [--device cpu] [request flags as key=value ...]

Memory is the highest resident size of the process during the stage, on a GPU the highest allocation there.
The first clip includes what is done once (allocating, encoding the prompt), so it has a column of its own.
"""

import argparse
import ast
import platform
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from soundstage import Pipeline, Progress

PROMPT = "a red ball bounces on a wooden floor"
PAGE = 4096  # bytes; what /proc counts in
INTERVAL = 0.02  # seconds between two looks at the memory


class Meter:
    """Collects seconds and peak bytes per stage from progress events."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = defaultdict(float)
        self.peak = defaultdict(int)
        self.stage = "import"
        self.running = True
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self, event: Progress) -> None:
        self.stage = event.stage
        self._look()
        if event.step == event.num_steps:
            self.seconds[event.stage] += event.seconds

    def _watch(self) -> None:
        while self.running:
            self._look()
            time.sleep(INTERVAL)

    def _look(self) -> None:
        if self.device.type == "cuda":
            current = torch.cuda.memory_allocated(self.device)
        else:
            current = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        self.peak[self.stage] = max(self.peak[self.stage], current)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("fields", nargs="*", metavar="key=value")
    options = parser.parse_args()
    fields = dict(field.split("=", 1) for field in options.fields)
    fields = {key: ast.literal_eval(value) for key, value in fields.items()}

    began = time.perf_counter()
    first_look = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    meter = Meter(first_look)
    pipeline = Pipeline.load(options.model, device=options.device, on_progress=meter)
    loading = time.perf_counter() - began
    rounds = []
    with TemporaryDirectory() as folder:
        for seed in range(options.clips):
            meter.seconds.clear()
            clip = pipeline(PROMPT, seed=seed, on_progress=meter, **fields)
            meter(Progress(stage="write", step=0, num_steps=1, seconds=0.0))
            writing = time.perf_counter()
            clip.save(Path(folder) / "clip.mp4")
            spent = time.perf_counter() - writing
            meter(Progress(stage="write", step=1, num_steps=1, seconds=spent))
            rounds.append(dict(meter.seconds))
    meter.running = False

    _, frames, height, width = clip.pixels.shape
    size = f"{width}x{height}, {frames} frames at {clip.frame_rate} fps"
    print(f"{options.model}: {size}; commit {commit()}")
    print(f"{machine(meter.device)}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| stage | first clip, s | later clips, median s | peak memory, MB |")
    print("|---|---|---|---|")
    print(f"| load | {loading:.2f} | | {meter.peak['load'] / 1e6:.0f} |")
    for stage, seconds in rounds[0].items():
        later = [r[stage] for r in rounds[1:]]
        median = f"{statistics.median(later):.2f}" if later else ""
        peak = meter.peak[stage] / 1e6
        print(f"| {stage.replace('_', ' ')} | {seconds:.2f} | {median} | {peak:.0f} |")
    totals = [sum(r.values()) for r in rounds]
    median = f"{statistics.median(totals[1:]):.2f}" if totals[1:] else ""
    print(f"| all but load | {totals[0]:.2f} | {median} | {max(meter.peak.values()) / 1e6:.0f} |")


def commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.processor()


if __name__ == "__main__":
    main()
