"""What `soundstage generate` takes beside its work, with the embedded model: processor and wall seconds.

python benchmarks/startup.py [--against COMMIT] [--rounds 5] [--duration SECONDS ...] [--quiet CORES]

All commands are run in turns, each in a process of its own, on one thread; medians. Python's compiled files
go to a folder of this run and are there before the first round that counts; with --uncompiled Python neither
reads nor writes any. Where more than this runs on the machine, only processor seconds mean something: the
last column says how many cores others kept busy meanwhile, and --quiet makes a run again beside which it was
more.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
CLIP = ("generate", "a red ball bounces on a wooden floor", "--seed", "7", "--json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against", metavar="COMMIT", help="another state of the package, run in turns with this"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--uncompiled", action="store_true", help="as where Python may not write compiled files"
    )
    parser.add_argument(
        "--duration", type=float, nargs="+", metavar="SECONDS", help="of clips to make; one of 2 s if absent"
    )
    parser.add_argument("--quiet", type=float, metavar="CORES", help="most that others may keep busy")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        clip = [*CLIP, "-o", str(folder / "clip.mp4")]
        commands = {
            "import torch": (REPOSITORY / "src", ["-c", "import torch"]),
            "--help": (REPOSITORY / "src", ["-m", "soundstage", "--help"]),
        }
        sources = {"generate": REPOSITORY / "src"}
        if options.against:
            sources[f"generate, {options.against}"] = at_commit(options.against, folder / "against")
        for seconds in options.duration or [None]:
            length = [] if seconds is None else ["--duration", f"{seconds:g}"]
            for what, source in sources.items():
                name = what if seconds is None else f"{what}, {seconds:g} s"
                commands[name] = (source, ["-m", "soundstage", *clip, *length])
        compiled = None if options.uncompiled else folder / "compiled"
        rounds: dict[str, list[Measured]] = {what: [] for what in commands}
        for index in range(options.rounds + 1):
            for what, (source, arguments) in commands.items():
                measured = run(source, arguments, compiled)
                if not index:  # the first round compiles and fills the cache of the disk
                    continue
                while options.quiet is not None and measured.beside > options.quiet:
                    time.sleep(1)
                    measured = run(source, arguments, compiled)
                rounds[what].append(measured)
    print("| command | processor, s | wall, s | denoise, decode, write: wall, s | of wall outside | beside |")
    print("|---|---:|---:|---:|---:|---:|")
    for what, runs in rounds.items():
        processor, wall, work, beside = (statistics.median(column) for column in zip(*runs, strict=True))
        ours = f"{work:.2f} | {1 - work / wall:.0%}" if work else " | "
        print(f"| {what} | {processor:.2f} | {wall:.2f} | {ours} | {beside:.2f} |")


def at_commit(commit: str, folder: Path) -> Path:
    """Write the package of a commit into a folder and return its source folder."""
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", commit, "src"], check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "src"


class Measured(NamedTuple):
    processor: float  # seconds
    wall: float  # seconds
    work: float  # wall seconds that stages tell of
    beside: float  # cores that other processes kept busy


def run(source: Path, arguments: list[str], compiled: Path | None) -> Measured:
    """Run Python and measure it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    if compiled is None:
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": os.devnull}
    else:
        environment |= {"PYTHONPYCACHEPREFIX": str(compiled)}
    busy, before = busy_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    beside = max(busy_seconds() - busy - processor, 0) / wall
    return Measured(processor, wall, work_of(done.stdout), beside)


def busy_seconds() -> float:
    """Return the processor seconds of the whole machine since it was started; 0 where it does not tell."""
    counts = Path("/proc/stat")
    if not counts.exists():
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, counts.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def work_of(printed: bytes) -> float:
    """Read what a clip's stages took, as far as they came one after the other; 0 for other commands.

    A plain clip is decoded and written part after part: what comes after denoising ends when the clip does.
    """
    if not printed.startswith(b"{"):
        return 0.0
    record = json.loads(printed)
    stages = record["stages"]
    return float(record["seconds"] - stages.get("encode_prompt", 0.0))


if __name__ == "__main__":
    main()
