"""What `soundstage generate` takes beside its work, with the embedded model: processor and wall seconds.

python benchmarks/startup.py [--against COMMIT] [--rounds 5]

All commands are run in turns, each in a process of its own, on one thread; medians. Python's compiled files
go to a folder of this run and are there before the first round that counts; with --uncompiled Python neither
reads nor writes any. Where more than this runs on the machine, only processor seconds mean something.
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
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        clip = [*CLIP, "-o", str(folder / "clip.mp4")]
        commands = {
            "import torch": (REPOSITORY / "src", ["-c", "import torch"]),
            "--help": (REPOSITORY / "src", ["-m", "soundstage", "--help"]),
            "generate": (REPOSITORY / "src", ["-m", "soundstage", *clip]),
        }
        if options.against:
            source = at_commit(options.against, folder / "against")
            commands[f"generate, {options.against}"] = (source, ["-m", "soundstage", *clip])
        compiled = None if options.uncompiled else folder / "compiled"
        rounds: dict[str, list[tuple[float, float, float]]] = {what: [] for what in commands}
        for index in range(options.rounds + 1):
            for what, (source, arguments) in commands.items():
                measured = run(source, arguments, compiled)
                if index:  # the first round compiles and fills the cache of the disk
                    rounds[what].append(measured)
    print("| command | processor, s | wall, s | denoise, decode, write: wall, s | of wall outside |")
    print("|---|---:|---:|---:|---:|")
    for what, measured in rounds.items():
        processor, wall, work = (statistics.median(column) for column in zip(*measured, strict=True))
        ours = f"{work:.2f} | {1 - work / wall:.0%}" if work else " | "
        print(f"| {what} | {processor:.2f} | {wall:.2f} | {ours} |")


def at_commit(commit: str, folder: Path) -> Path:
    """Write the package of a commit into a folder and return its source folder."""
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", commit, "src"], check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "src"


def run(source: Path, arguments: list[str], compiled: Path | None) -> tuple[float, float, float]:
    """Run Python and return processor seconds, wall seconds, and those of them that stages tell of."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    if compiled is None:
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": os.devnull}
    else:
        environment |= {"PYTHONPYCACHEPREFIX": str(compiled)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return processor, wall, work_of(done.stdout)


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
