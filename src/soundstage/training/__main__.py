r"""`python -m soundstage.training`: as `soundstage train`, where tyro and PyAV are not installed.

A machine that is lent for minutes has torch and little else. From a checkout that is not installed:

    PYTHONPATH=src python3 -m soundstage.training recipes/embedded_gpu_short.toml --out runs/short \
        --device cuda --max-minutes 9 --piece-mib 15
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from soundstage.core.errors import Cancelled, SoundstageError


def parser() -> argparse.ArgumentParser:
    """Describe the arguments; those of `soundstage train`."""
    it = argparse.ArgumentParser(prog="python -m soundstage.training", description="Train by a recipe.")
    it.add_argument("recipe", type=Path, help="TOML file that defines the run, or a plan")
    it.add_argument("--out", type=Path, required=True, help="directory of log, state and result")
    it.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override of the recipe, such as optim.lr=1e-3; can be given several times",
    )
    it.add_argument("--device", default="cpu", help="where to train: cpu or cuda")
    it.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    it.add_argument(
        "--max-minutes", type=float, default=float("inf"), help="end after so many minutes, resumable"
    )
    it.add_argument(
        "--export-only", action="store_true", help="write the result from the saved state without training"
    )
    it.add_argument(
        "--piece-mib",
        type=float,
        default=0.0,
        help="write the result once more, to OUT/pieces, in files of at most so many MiB",
    )
    return it


def main(argv: Sequence[str]) -> int:
    """Train; return the exit status, which is that of `soundstage train`."""
    given = vars(parser().parse_args(argv))
    logging.basicConfig(format="soundstage: %(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("soundstage").setLevel(logging.INFO)
    from soundstage.training.session import Session, report

    try:
        Session(**{**given, "overrides": tuple(given["overrides"])}).run(report)
    except SoundstageError as error:
        sys.stderr.write(f"soundstage: error: {error}\n")
        return 2
    except (KeyboardInterrupt, Cancelled):
        sys.stderr.write("soundstage: stopped\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
