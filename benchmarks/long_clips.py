"""Peak memory, seams and drift of long clips, as tables for docs/benchmarks.md.

python benchmarks/long_clips.py [--seconds 2 20 60] [--drift-control 0 0.2] [--steps 4]
                                [--model embedded] [--device cpu] [key=value ...]

Every clip is made in a process of its own, whose largest resident size counts, and written to an mp4; the
rest is measured from that file. At a seam and inside windows, the same is asked: how much a frame differs
from the one before (PSNR), and by how much the level of 50 ms of sound differs from that of the 50 ms before.
Drift compares each window's mean colour and contrast with those of the first window.

What it takes grows with the windows: on the embedded model a minute of clip has 59. Fewer --steps tell as
much about memory, and less about drift.
"""

import argparse
import ast
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

PROMPT = "a red ball bounces on a wooden floor"
SLICE = 0.05  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 20.0, 60.0])
    parser.add_argument("--drift-control", type=float, nargs="+", default=[0.0])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("fields", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    fields = {k: ast.literal_eval(v) for k, v in (field.split("=", 1) for field in options.fields)}
    if options.steps is not None:
        fields["num_inference_steps"] = options.steps
    if options.child is not None:
        length = {"duration": options.seconds[0], "drift_control": options.drift_control[0]}
        print(json.dumps(make(options.child, options.model, options.device, {**fields, **length})))
        return
    print(f"fields {fields}\n")
    print(f"| clip, s | drift control | windows | peak memory, MB | seconds | {' | '.join(TITLES)} |")
    print("|---" * (5 + len(TITLES)) + "|", flush=True)
    with TemporaryDirectory() as folder:
        for seconds in options.seconds:
            for control in options.drift_control:
                path = Path(folder) / "clip.mp4"
                command = [sys.executable, __file__, "--child", str(path), "--seconds", str(seconds)]
                command += ["--drift-control", str(control), "--model", options.model]
                command += ["--device", options.device, *(f"{k}={v!r}" for k, v in fields.items())]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                made = json.loads(done.stdout)
                told = f"{made['peak'] / 1e6:.0f} | {made['seconds']:.0f} | {made['cells']}"
                print(f"| {seconds:g} | {control:g} | {made['windows']} | {told} |", flush=True)


def make(path: Path, model: str, device: str, fields: dict) -> dict:
    """Make one clip and tell what it took and what is in it."""
    from soundstage import Pipeline

    pipeline = Pipeline.load(model, device=device)
    began = time.monotonic()
    stream = pipeline.stream(PROMPT, **fields)
    stream.save(path)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    windows = pipeline.plan(stream.request).canvas.windows
    cells = measure(path, windows)
    return {"peak": peak, "seconds": seconds, "windows": stream.num_parts, "cells": cells}


TITLES = (
    "frame to frame inside, dB",
    "at seams, dB",
    "level step inside, dB",
    "at seams, dB",
    "colour drift, of 255",
    "contrast, last / first",
)


def measure(path: Path, windows) -> str:
    """Return the cells of one clip's row."""
    import torch

    from soundstage.media.video import read_clip

    clip = read_clip(path)
    frames = clip.frames.float()
    mse = (frames[1:] - frames[:-1]).square().mean(dim=(1, 2, 3)).clamp(min=0.01)
    psnr = (10 * torch.log10(255**2 / mse)).tolist()
    steps = levels(clip.waveform, clip.sample_rate)
    if windows is None:
        return f"{statistics.median(psnr):.1f} | | {statistics.median(steps.values()):.2f} | | |"
    starts = [k * windows.advance for k in range(1, windows.count)]
    quarter = windows.overlap // 4
    seam_frames = {f for s in starts for f in range(s + quarter, s + windows.overlap - quarter + 1)}
    at = [value for i, value in enumerate(psnr, start=1) if i in seam_frames]
    inside = [value for i, value in enumerate(psnr, start=1) if i not in seam_frames]
    seam_slices = {round(float((s + windows.overlap / 2) / clip.frame_rate) / SLICE) for s in starts}
    at_level = [v for i, v in steps.items() if i in seam_slices or i - 1 in seam_slices]
    inside_level = [v for i, v in steps.items() if i not in seam_slices and i - 1 not in seam_slices]
    first, last = frames[: windows.advance], frames[-windows.advance :]
    parts = [frames[s : s + windows.advance] for s in starts if s + windows.advance <= len(frames)]
    drift = max((p.mean(dim=(0, 1, 2)) - first.mean(dim=(0, 1, 2))).abs().max().item() for p in parts)
    return (
        f"{statistics.median(inside):.1f} | {statistics.median(at):.1f} | "
        f"{statistics.median(inside_level):.2f} | {statistics.median(at_level):.2f} | "
        f"{drift:.1f} | {(last.std() / first.std()).item():.2f}"
    )


def levels(waveform, sample_rate: int) -> dict[int, float]:
    """Return how much each slice's level differs from that of the one before; silence counts as -60 dB."""
    import torch

    length = round(SLICE * sample_rate)
    count = waveform.shape[1] // length
    power = waveform[:, : count * length].unflatten(1, (count, length)).square().mean(dim=(0, 2))
    decibels = 10 * torch.log10(power.clamp(min=1e-6))
    return {i + 1: step for i, step in enumerate((decibels[1:] - decibels[:-1]).abs().tolist())}


if __name__ == "__main__":
    main()
