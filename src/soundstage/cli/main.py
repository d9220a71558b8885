"""The one command line: finds the command, turns errors into one line and an exit status.

Nothing on the way to `soundstage --help` may import torch: commands are named here and imported when chosen.
"""

import importlib
import inspect
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import NamedTuple, Protocol, runtime_checkable

from soundstage import __version__
from soundstage.cli.complaint import one_line
from soundstage.cli.imports import importing
from soundstage.core.config import nearest
from soundstage.core.errors import Cancelled, RequestError, ResourceError, SoundstageError

EXIT_FAILED, EXIT_USER_ERROR, EXIT_STOPPED = 1, 2, 130


class CommandEntry(NamedTuple):
    """Where a command lives and what it is for."""

    module: str
    name: str  # a frozen dataclass whose fields are the flags, with `run`
    summary: str


@runtime_checkable
class Command(Protocol):
    """What every command's dataclass offers."""

    def run(self) -> int:
        """Do the work and return the exit status."""


COMMANDS: dict[str, CommandEntry] = {
    "generate": CommandEntry(
        "soundstage.cli.generate", "GenerateCommand", "make clips with sound from prompts"
    ),
    "plan": CommandEntry(
        "soundstage.cli.plan", "PlanCommand", "predict memory and time of a clip, and where weights will be"
    ),
    "batch": CommandEntry("soundstage.cli.batch", "BatchCommand", "make many clips from a file of requests"),
    "world": CommandEntry(
        "soundstage.cli.world", "WorldCommand", "write sample clips of the procedural world"
    ),
    "train": CommandEntry("soundstage.cli.train", "TrainCommand", "train a part of a model by a recipe"),
    "assemble": CommandEntry(
        "soundstage.cli.assemble", "AssembleCommand", "join trained parts into one model file"
    ),
    "evaluate": CommandEntry("soundstage.cli.evaluate", "EvaluateCommand", "measure what a model generates"),
    "verify": CommandEntry(
        "soundstage.cli.verify", "VerifyCommand", "check this installation against records"
    ),
    "inspect": CommandEntry(
        "soundstage.cli.inspect", "InspectCommand", "explain a checkpoint or a result file"
    ),
    "models": CommandEntry("soundstage.cli.models", "ModelsCommand", "list and download the known releases"),
}


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit status.

    0 is success, 2 an error the user can mend (also a full disk), 130 a stop by Ctrl-C, 1 anything else.
    """
    arguments = [argument for argument in argv if argument != "--debug"]
    debug = len(arguments) < len(argv)
    logging.basicConfig(format="soundstage: %(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("soundstage").setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        return _dispatch(arguments)
    except (KeyboardInterrupt, Cancelled):
        return _fail("stopped", EXIT_STOPPED, debug=False)
    except SoundstageError as error:
        return _fail(f"error: {error}", EXIT_USER_ERROR, debug=debug)
    except BrokenPipeError:
        # The reader of our output has gone (as in `| head`): there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return EXIT_FAILED
    except Exception as error:
        kind = type(error).__name__
        return _fail(f"internal error: {kind}: {error} (--debug shows where)", EXIT_FAILED, debug=debug)


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(top_level_help())
        return 0 if arguments else EXIT_USER_ERROR
    name, *rest = arguments
    if name == "--version":
        sys.stdout.write(f"soundstage {__version__}\n")
        return 0
    if name not in COMMANDS:
        allowed = ", ".join(COMMANDS)
        raise RequestError(f"unknown command {name!r}{nearest(name, COMMANDS)}; the commands are {allowed}")
    try:
        return parse(name, rest).run()
    except SystemExit as exit_:  # the parser has printed help
        return exit_.code if isinstance(exit_.code, int) else EXIT_USER_ERROR
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise ResourceError(
            f"the device's memory does not suffice; a smaller size, fewer frames, --offload stream and "
            f"--quantize fp8 take less ({str(error).partition('. ')[0]})"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether a GPU's memory was too small, without importing torch to know."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def parse(name: str, arguments: Sequence[str]) -> Command:
    """Read the flags of one command into its dataclass.

    Raises:
        RequestError: A flag is unknown, malformed or missing.
        SystemExit: Help was asked for, and has been printed.
    """
    with importing():
        import tyro

        entry = COMMANDS[name]
        command_class: type[Command] = getattr(importlib.import_module(entry.module), entry.name)
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(
                command_class,
                args=list(arguments),
                prog=f"soundstage {name}",
                description=inspect.getdoc(command_class),
                config=(
                    tyro.conf.PositionalMetavarFromFieldName,
                    tyro.conf.FlagCreatePairsOff,
                    tyro.conf.DisallowNone,
                ),
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
        told = one_line(complaint.getvalue())
        raise RequestError(f"{told}; `soundstage {name} --help` lists the flags") from exit_


def top_level_help() -> str:
    """Write the listing of all commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "usage: soundstage COMMAND ...",
            "",
            "Video and its sound, generated together.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  --help     this text, or a command's own after its name",
            "  --version  the version",
            "  --debug    with any command: log more, and show where an error arose",
            "",
            'example: soundstage generate "a red ball bounces on a wooden floor" -o clip.mp4',
            "",
        ]
    )


def _fail(message: str, status: int, *, debug: bool) -> int:
    if debug:
        sys.stderr.write(traceback.format_exc())
    sys.stderr.write(f"soundstage: {' '.join(message.split())}\n")
    return status
