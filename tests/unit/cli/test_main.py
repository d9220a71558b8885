import dataclasses
import io
import sys
import types
from typing import Literal

import pytest
import torch

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
        way: Literal["fast", "slow"] | None = None
        """How."""

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


def test_memory_of_a_device_that_does_not_suffice_is_the_users_to_mend(command, capsys):
    command.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB.")
    assert main.run(["fail"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("soundstage: error: the device's memory does not suffice; a smaller size, fewer")
    assert "--offload stream" in line
    assert "--quantize fp8" in line
    assert "CUDA out of memory)" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--times", "often"], "--times cannot be 'often'"),
        (["--way", "flst"], "--way 'flst' is not one of fast, slow (did you mean 'fast'?)"),
        (["--tmes", "1"], "Unrecognized options: --tmes, 1 (did you mean '--times'?)"),
        (["--way"], "Missing value for argument '--way'"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_the_parser_refuses_is_one_line_with_the_nearest_name(
    command, capsys, monkeypatch, arguments, told, encoding
):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))  # it looks there
    assert main.run(["fail", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"soundstage: error: {told}")
    assert line.endswith("; `soundstage fail --help` lists the flags")


def test_a_flag_that_must_be_given_is_named(capsys):
    assert main.run(["generate", "a ball"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("soundstage: error: missing: -o PATH, --output PATH;")


def test_a_value_of_the_wrong_kind_is_told_with_the_right_one(capsys):
    assert main.run(["generate", "a ball", "-o", "clip.mp4", "--steps", "few"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("soundstage: error: --steps/--num-inference-steps 'few' is not of the form INT;")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "--batch", "2.5"], "--batch '2.5' is not a whole number;"),
        (["train", "x.toml", "--out", "x", "--max-minutes", "few"], "--max-minutes 'few' is not a number;"),
    ],
)
def test_what_is_no_number_is_told_in_words(capsys, arguments: list[str], told: str):
    assert main.run(arguments) == 2
    assert f"soundstage: error: {told}" in capsys.readouterr().err
