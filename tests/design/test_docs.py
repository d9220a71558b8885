"""The documents agree with the code: links lead somewhere, commands parse, generated pages are current."""

import re
import shlex
from pathlib import Path

import pytest

from soundstage.cli import reference
from soundstage.cli.main import COMMANDS, parse

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def name_of(path):
    return str(path.relative_to(ROOT))


def commands_in(text):
    """Yield every `soundstage ...` line of the shell blocks, without comments."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["soundstage"]:
                yield words[1:]


def is_understood(name, arguments):
    try:
        parse(name, arguments)
    except SystemExit as stop:
        return stop.code == 0
    return True


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_that_exist(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = {t for t in targets if "://" not in t and not (page.parent / t).exists()}
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_are_understood(page, capsys):
    for words in commands_in(page.read_text()):
        if words[0].startswith("--"):
            continue
        assert words[0] in COMMANDS, words
        assert is_understood(words[0], words[1:]), capsys.readouterr().err


def test_examples_in_the_help_are_understood(capsys):
    for name, entry in COMMANDS.items():
        module = __import__(entry.module, fromlist=[entry.name])
        examples = re.findall(rf"soundstage {name} .*", getattr(module, entry.name).__doc__)
        assert examples, name
        for example in examples:
            assert is_understood(name, shlex.split(example)[2:]), capsys.readouterr().err


def test_command_line_page_is_current(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert reference.main(["--check"]) == 0


def test_command_line_page_that_is_out_of_step_is_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert reference.main(["--check"]) == 1
    assert "run `make docs`" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


def test_every_decision_is_listed_and_numbered():
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    listed = (ROOT / "ARCHITECTURE.md").read_text()
    for number, page in enumerate(decisions, start=1):
        assert page.name.startswith(f"{number:04d}-")
        text = page.read_text()
        assert text.startswith(f"# {number:04d}: ")
        assert all(f"**{part}.**" in text for part in ("Context", "Decision", "Consequences"))
        assert page.name in listed


def test_registries_in_the_architecture_exist():
    rows = re.findall(r"`([A-Z_]+)`, \[`([a-z_/]+\.py)`\]", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(rows) >= 6
    for registry, path in rows:
        assert re.search(rf"^{registry}\b", (ROOT / "src/soundstage" / path).read_text(), re.MULTILINE), (
            registry
        )
