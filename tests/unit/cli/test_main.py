import dataclasses
import sys
import types

import pytest

from soundstage.cli import main
from soundstage.core.errors import (
    Cancelled,
    CheckpointError,
    ConfigError,
    MediaError,
    RequestError,
    ResourceError,
)


@pytest.fixture
def command(monkeypatch):
    """Install a command `fail` that raises what the test puts into `fail.error`."""
    module = types.ModuleType("soundstage.cli.fail")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class FailCommand:
        """Fail. Example: soundstage fail"""

        times: tuple[int, ...] = ()
        """How often."""

        def run(self) -> int:
            if module.error is not None:
                raise module.error
            return sum(self.times)

    module.error = None
    module.FailCommand = FailCommand
    monkeypatch.setitem(sys.modules, "soundstage.cli.fail", module)
    monkeypatch.setitem(
        main.COMMANDS, "fail", main.CommandEntry("soundstage.cli.fail", "FailCommand", "fail")
    )
    return module


@pytest.mark.parametrize("error", [RequestError, ConfigError, CheckpointError, MediaError, ResourceError])
def test_expected_errors_are_one_line_and_status_2(command, capsys, error):
    command.error = error("num_frames=120 is not 8 k + 1;\n  the nearest are 113 and 121")
    assert main.run(["fail"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "soundstage: error: num_frames=120 is not 8 k + 1; the nearest are 113 and 121\n"


def test_unexpected_errors_are_one_line_and_status_1(command, capsys):
    command.error = ZeroDivisionError("division by zero")
    assert main.run(["fail"]) == 1
    line = capsys.readouterr().err
    assert line == "soundstage: internal error: ZeroDivisionError: division by zero (--debug shows where)\n"


@pytest.mark.parametrize("error", [RequestError("bad"), ZeroDivisionError("zero")])
def test_debug_adds_the_traceback(command, capsys, error):
    command.error = error
    main.run(["fail", "--debug"])
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert text.splitlines()[-1].startswith("soundstage: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled("enough")])
def test_stopping_is_status_130_without_a_traceback(command, capsys, error):
    command.error = error
    assert main.run(["fail", "--debug"]) == 130
    assert capsys.readouterr().err == "soundstage: stopped\n"


def test_status_of_the_command_is_passed_on(command):
    assert main.run(["fail"]) == 0
    assert main.run(["fail", "--times", "1", "2"]) == 3


def test_malformed_flag_is_status_2(command, capsys):
    assert main.run(["fail", "--times", "often"]) == 2
    assert "--times" in capsys.readouterr().err
