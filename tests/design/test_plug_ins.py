"""What a user may choose is spelled twice, once where torch may not go; the two must agree."""

import dataclasses
import importlib
import inspect

import pytest

from soundstage.cli.main import COMMANDS, parse


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_a_frozen_dataclass_with_an_example(name):
    entry = COMMANDS[name]
    command = getattr(importlib.import_module(entry.module), entry.name)
    assert dataclasses.is_dataclass(command)
    assert command.__dataclass_params__.frozen
    assert callable(command.run)
    assert f"soundstage {name}" in inspect.getdoc(command), "the help needs an example"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_explains_every_flag(name, capsys):
    entry = COMMANDS[name]
    command = getattr(importlib.import_module(entry.module), entry.name)
    with pytest.raises(SystemExit) as stop:
        parse(name, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = [line for line in text.splitlines() if line.startswith("│ ")]
    assert flags
    # A flag without an explanation shows its default alone, on its own line.
    bare = [flag for flag in flags if flag[2:].strip("│ ").endswith(")") and "  (default" in flag]
    assert bare == [], f"{command.__name__} has flags without an explanation"
