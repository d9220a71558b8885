"""Write docs/reference/cli.md from the commands' own help: `python -m soundstage.cli.reference [--check]`."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from soundstage.cli.main import COMMANDS, run

PAGE = Path("docs/reference/cli.md")
_COLUMNS = "100"


def reference() -> str:
    """Render the page: the listing of commands, then the help of each."""
    sections = [
        "# Command line",
        "This page is generated from the commands' own help by `make docs`; `make check` keeps it in step.",
        _block("--help"),
    ]
    for name in COMMANDS:
        sections += [f"## soundstage {name}", _block(name, "--help")]
    return "\n\n".join(sections) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with `--check` compare it and report a difference by exit status 1."""
    page = reference()
    if "--check" not in arguments:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page)
        return 0
    if PAGE.is_file() and PAGE.read_text() == page:
        return 0
    sys.stderr.write(f"{PAGE} is not in step with the commands; run `make docs`\n")
    return 1


def _block(*arguments: str) -> str:
    """Capture one help text at a fixed width, without the boxes' trailing blanks."""
    os.environ["COLUMNS"] = _COLUMNS
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        run(arguments)
    text = "\n".join(line.rstrip() for line in captured.getvalue().strip().splitlines())
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
