"""What a person sees before anything is generated: help, versions, errors; each in a process of its own."""

import os
import resource
import subprocess
import sys

import pytest

from soundstage import __version__
from soundstage.cli.main import COMMANDS


def soundstage(*arguments, flags=()):
    command = [sys.executable, *flags, "-m", "soundstage", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def cpu_seconds(*arguments):
    """Processor time of one call; unlike wall time it does not grow with what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert soundstage(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def test_help_answers_within_a_blink():
    assert min(cpu_seconds("--help") for _ in range(5)) < 0.3


def test_help_imports_nothing_heavy():
    done = soundstage("--help", flags=("-X", "importtime"))
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "soundstage.cli.main" in imported
    assert {"torch", "numpy", "tyro", "rich", "av", "transformers"} & imported == set()


def test_help_lists_every_command_on_stdout():
    done = soundstage("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name, entry in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert entry.summary in done.stdout


def test_no_command_shows_the_help_but_is_an_error():
    done = soundstage()
    assert done.returncode == 2
    assert "usage: soundstage COMMAND" in done.stdout


def test_version():
    assert soundstage("--version").stdout == f"soundstage {__version__}\n"


def test_unknown_command_names_the_nearest():
    done = soundstage("genrate", "a ball")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("soundstage: error: unknown command 'genrate' (did you mean 'generate'?)")
    assert done.stderr.count("\n") == 1


def test_unknown_flag_exits_2_and_suggests():
    done = soundstage("generate", "a ball", "-o", "clip.mp4", "--sead", "1")
    assert done.returncode == 2
    assert "--seed" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_needs_no_torch(name):
    program = (
        "import sys\nfrom soundstage.cli.main import run\n"
        f"status = run([{name!r}, '--help'])\n"
        "sys.exit(3 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: soundstage {name}" in done.stdout


def test_output_closed_early_is_not_a_traceback():
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        command = [sys.executable, "-u", "-m", "soundstage", "--help"]
        done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write_end)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
