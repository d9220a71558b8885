"""`python -m soundstage` and the console script."""

import signal
import sys


def main() -> None:
    """Run the command line; being terminated cleans up as Ctrl-C does."""
    from soundstage.cli.imports import importing

    with importing():
        from soundstage.cli.main import run

    # SIGINT too: a script's background jobs are started with it ignored, and `kill -INT` should work on them.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
