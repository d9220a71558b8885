"""How well the modes work on a model, on held-out scenes of the world, as tables for docs/benchmarks.md.

python benchmarks/modes.py seams [-n 8] [--kinds bounce] [--seed 1] [--model embedded] [key=value ...]
python benchmarks/modes.py given [-n 64] [--kinds bounce] [--seed 1] [--report outputs/modes]
python benchmarks/modes.py time [--against 8a6298f] [--rounds 5] [--model embedded] [key=value ...]

-n clips of each kind of scene.

seams: the middle of true clips is made again, and their end is extended. At every seam it is asked how much a
frame differs from the one before (PSNR), and by how much the level of 50 ms of sound differs from that of the
50 ms before; the same is asked everywhere inside the true clips.

given: sound for true pictures and pictures for true sound, measured by `soundstage evaluate`.

time: a plain clip, here and at an earlier commit in a worktree of its own, in turns, in seconds of the
processor where that is what computes, so that what else runs on the machine matters little.
"""

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PROMPT = "a red ball bounces on a wooden floor"
ROOT = Path(__file__).parents[1]
SLICE = 0.05  # seconds
RETAKE = (0.375, 0.625)  # shares of a clip between which it is made again
EXTENSION = 0.5  # seconds
LOUD = -45.0  # dB of full scale; steps between softer slices are not heard

# Runs in the other commit, too: nothing but what every commit has.
CHILD = """
import json, sys, time
from soundstage import Pipeline
model, device, fields = json.loads(sys.argv[1])
pipeline = Pipeline.load(model, device=device)
clock = time.process_time if pipeline.components.device.type == "cpu" else time.perf_counter
for line in sys.stdin:
    began = clock()
    pipeline(line.strip(), seed=1, **fields)
    print(clock() - began, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["seams", "given", "time"])
    parser.add_argument("-n", "--num-clips", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", help="of scenes; all if not given")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--report", default="outputs/modes")
    parser.add_argument("--against", default="8a6298f")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("fields", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    fields = {k: ast.literal_eval(v) for k, v in (field.split("=", 1) for field in options.fields)}
    {"seams": seams, "given": given, "time": compare_time}[options.what](options, fields)


def given(options: argparse.Namespace, fields: dict) -> None:
    """Let the evaluation measure sound for pictures and pictures for sound."""
    command = [sys.executable, "-m", "soundstage", "evaluate", "--streams", "av", "v2a", "a2v"]
    command += ["-n", str(options.num_clips or 64), "--seed", str(options.seed), "--model", options.model]
    command += ["--device", options.device, "--report", options.report]
    command += ["--kinds", *options.kinds] if options.kinds else []
    command += [word for k, v in fields.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    print(" ".join(command[1:]), flush=True)
    subprocess.run(command, check=True)


def seams(options: argparse.Namespace, fields: dict) -> None:
    """Print the table of seams."""
    from soundstage import Pipeline
    from soundstage.core.errors import RequestError
    from soundstage.data.world.kinds import KINDS
    from soundstage.evaluation.cases import world_cases
    from soundstage.evaluation.sources import world_config, write_world
    from soundstage.media.video import read_clip

    pipeline = Pipeline.load(options.model, device=options.device)
    config = world_config(pipeline, fields)
    found: dict[str, list[float]] = defaultdict(list)

    def can_read(caption: str) -> bool:
        try:
            pipeline.prompts.check_length(caption)
        except RequestError:
            return False
        return True

    kinds = options.kinds or tuple(KINDS)
    cases = world_cases(config, kinds, options.num_clips or 8, options.seed, accepts=can_read)
    with TemporaryDirectory() as folder:
        source = Path(folder) / "true.mp4"
        for case in cases:
            write_world(case, source, config=config)
            true = read_clip(source)
            note(found, "true clips", true, None)
            length = len(true.frames) / true.frame_rate
            span = [round(float(share * length), 3) for share in RETAKE]
            common = {**fields, "seed": case.seed, "video": source}
            again = pipeline(case.caption, retake=f"{span[0]}-{span[1]}", **common)
            note(found, "retake", read_clip(again.save(Path(folder) / "again.mp4")), span)
            longer = pipeline(case.caption, extend=f"forward={EXTENSION}s", **common)
            note(found, "extend", read_clip(longer.save(Path(folder) / "longer.mp4")), [float(length)])
    print(f"{options.model}: {len(cases)} held-out scenes ({', '.join(kinds)}) from seed {options.seed}\n")
    print("| | frame to frame, dB (median) | worst tenth | level step, dB (median) | worst tenth |")
    print("|---|---|---|---|---|")
    for name in ("true clips", "retake", "extend"):
        psnr, steps = sorted(found[f"{name} psnr"]), sorted(found[f"{name} level"])
        cells = (statistics.median(psnr), quantile(psnr, 0.1))
        more = (statistics.median(steps), quantile(steps, 0.9)) if steps else (float("nan"),) * 2
        where = "everywhere inside" if name == "true clips" else "at the seams"
        print(f"| {name}, {where} | " + " | ".join(f"{cell:.1f}" for cell in (*cells, *more)) + " |")


def note(found: dict[str, list[float]], name: str, clip, moments: list[float] | None) -> None:
    """Keep what a clip measures at some moments, or everywhere."""
    import torch

    frames = clip.frames.float()
    mse = (frames[1:] - frames[:-1]).square().mean(dim=(1, 2, 3)).clamp(min=0.01)
    psnr = (10 * torch.log10(255**2 / mse)).tolist()  # [i]: frame i + 1 against frame i
    length = round(SLICE * clip.sample_rate)

    def level(sample: int) -> float | None:
        before, after = clip.waveform[:, sample - length : sample], clip.waveform[:, sample : sample + length]
        if sample < length or after.shape[1] < length:
            return None
        a, b = (10 * torch.log10(part.square().mean().clamp(min=1e-6)).item() for part in (before, after))
        return abs(a - b) if max(a, b) > LOUD else None

    if moments is None:
        found[f"{name} psnr"] += psnr
        places = range(length, clip.waveform.shape[1] - length, length)
    else:
        found[f"{name} psnr"] += [psnr[round(float(moment * clip.frame_rate)) - 1] for moment in moments]
        places = [round(moment * clip.sample_rate) for moment in moments]
    found[f"{name} level"] += [step for place in places if (step := level(place)) is not None]


def quantile(values: list[float], share: float) -> float:
    return values[min(round(share * (len(values) - 1)), len(values) - 1)]


def compare_time(options: argparse.Namespace, fields: dict) -> None:
    """Print the seconds of a plain clip, here and at another commit."""
    from soundstage.checkpoints.releases import EMBEDDED_FILE

    # The same weights on both sides: what is compared is code.
    model = str(EMBEDDED_FILE) if options.model == "embedded" else options.model
    arguments = json.dumps([model, options.device, fields])
    spent: dict[str, list[float]] = {"here": [], "then": []}
    with worktree(options.against) as then:
        children = {"here": child(ROOT, arguments), "then": child(then, arguments)}
        try:
            for number in range(options.rounds + 1):
                order = ("here", "then") if number % 2 else ("then", "here")
                for name in order:
                    seconds = ask(children[name])
                    if number:  # the first clip allocates and encodes the prompt
                        spent[name].append(seconds)
        finally:
            for process in children.values():
                process.stdin.close()
                process.wait()
    here, before = statistics.median(spent["here"]), statistics.median(spent["then"])
    ratios = sorted(a / b for a, b in zip(spent["here"], spent["then"], strict=True))
    print(f"{model}: {options.rounds} clips on each side, in turns; fields {fields}\n")
    print(f"| | here | {options.against} | ratio of medians | ratios of pairs |")
    print("|---|---|---|---|---|")
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    print(f"| plain clip, median s | {here:.3f} | {before:.3f} | {here / before:.3f} | {spread} |")


def child(root: Path, arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", CHILD, arguments]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )


def ask(process: subprocess.Popen) -> float:
    process.stdin.write(f"{PROMPT}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit("the other process ended; its error is above")
    return float(line)


@contextmanager
def worktree(commit: str):
    """Check a commit out beside this one, and remove it afterwards."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "then"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", place, commit], cwd=ROOT, check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
