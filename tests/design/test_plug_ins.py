"""What a user may choose is spelled twice, once where torch may not go; the two must agree."""

import dataclasses
import importlib
import inspect
import re

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


def test_formats_that_may_be_chosen_are_those_there_are():
    from typing import get_args

    from soundstage.pipelines.placing import OffloadName, QuantizeName
    from soundstage.runtime.planning import Offload
    from soundstage.runtime.quantization.registry import NONE, QUANTIZATIONS

    assert set(get_args(QuantizeName)) == {NONE, *QUANTIZATIONS}
    assert get_args(OffloadName) == get_args(Offload)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_explains_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(name, ["--help"])
    assert stop.value.code == 0
    text = re.sub("[│╭╮╰╯─]|-{3,}", " ", capsys.readouterr().out)
    entries = re.split(r"\n +(?=-)", text.split("options", 1)[1])[1:]
    assert any(entry.startswith("-h") for entry in entries)
    explained = [re.sub(r"\((default|required|repeatable)[^)]*\)", "", entry).strip() for entry in entries]
    bare = [entry for entry in explained if len(re.split(r"\s{2,}", entry)) < 2]
    assert bare == []
