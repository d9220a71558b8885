from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest

from soundstage.core.config import from_dict, load_toml, nearest, to_dict
from soundstage.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-3
    kind: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: int
    optim: Optim = field(default_factory=Optim)
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] | None = None
    rate: Fraction = Fraction(24)
    folder: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    free: Any = None


def test_nested_tables_become_dataclasses():
    recipe = from_dict(Recipe, {"steps": 5, "optim": {"lr": 1}, "sizes": [1, 2], "pair": [3, "x"]})
    assert recipe == Recipe(steps=5, optim=Optim(lr=1.0), sizes=(1, 2), pair=(3, "x"))
    assert isinstance(recipe.optim.lr, float)


def test_plain_data_come_back_equal():
    recipe = Recipe(steps=1, rate=Fraction(24000, 1001), folder=Path("a/b"), sizes=(4,), extra={"k": [1]})
    assert from_dict(Recipe, to_dict(recipe)) == recipe


def test_instances_are_accepted_as_they_are():
    assert from_dict(Recipe, {"steps": 1, "optim": Optim(lr=2.0)}).optim.lr == 2.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"steps": 1, "optin": {}}, r"unknown key 'optin' \(did you mean 'optim'\?\)"),
        ({}, "missing key 'steps'"),
        ({"steps": "many"}, "steps='many' should be of type int"),
        ({"steps": True}, "steps=True should be an integer"),
        ({"steps": 1.5}, "steps=1.5 should be of type int"),
        ({"steps": 1, "optim": {"lr": "fast"}}, "optim.lr='fast' should be of type float"),
        ({"steps": 1, "optim": 3}, "optim=3 should be a table"),
        ({"steps": 1, "optim": {"kind": "muno"}}, r"optim.kind='muno' is not one of .*did you mean 'muon'"),
        ({"steps": 1, "sizes": "12"}, "sizes='12' should be a list"),
        ({"steps": 1, "sizes": [1, "b"]}, r"sizes\[1\]='b' should be of type int"),
        ({"steps": 1, "pair": [1]}, "pair has 1 entries; 2 are needed"),
        ({"steps": 1, "rate": "24/0"}, "rate='24/0' is not a fraction"),
        ({"steps": 1, "rate": None}, "rate=None should be of type Fraction"),
    ],
)
def test_wrong_data_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Recipe, data)


def test_whole_floats_pass_as_integers():
    assert from_dict(Recipe, {"steps": 2.0}).steps == 2


def test_unknown_keys_of_other_programs_can_be_ignored():
    assert from_dict(Recipe, {"steps": 1, "theirs": 2}, ignore_unknown=True) == Recipe(steps=1)


def test_toml_is_read_and_overridden(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("steps = 3\n[optim]\nlr = 0.1\n")
    recipe = load_toml(Recipe, path, ["optim.lr=1e-4", "optim.kind=muon", "sizes=[1, 2]", "folder=out"])
    assert recipe == Recipe(steps=3, optim=Optim(lr=1e-4, kind="muon"), sizes=(1, 2), folder=Path("out"))


def test_override_may_add_a_table(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("steps = 3\n")
    assert load_toml(Recipe, path, ["optim.lr=2"]).optim.lr == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "not of the form key=value"),
        ("steps.deep=1", "'steps' is not a table"),
        ("stepz=1", "'steps'"),
    ],
)
def test_bad_overrides_are_named(tmp_path, override, message):
    path = tmp_path / "recipe.toml"
    path.write_text("steps = 3\n")
    with pytest.raises(ConfigError, match=message):
        load_toml(Recipe, path, [override])


def test_missing_and_malformed_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        load_toml(Recipe, tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_toml(Recipe, tmp_path / "bad.toml")


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("wibble", ["steps", "optim"]) == ""
