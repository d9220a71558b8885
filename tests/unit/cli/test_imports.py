import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from soundstage.cli import imports
from soundstage.cli.imports import importing


@pytest.fixture
def new_module(tmp_path, monkeypatch):
    """The name of a module that nobody has imported yet."""
    name = "a_module_for_the_test_of_imports"
    (tmp_path / f"{name}.py").write_text("cycle = []\ncycle.append(cycle)\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)
    gc.unfreeze()


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_looked_for_afterwards_as_before(enabled, new_module):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with importing():
            assert not gc.isenabled()
            __import__(new_module)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_what_was_imported_is_not_looked_through_again(new_module):
    before = gc.get_freeze_count()
    with importing():
        __import__(new_module)
    assert gc.get_freeze_count() > before
    assert not any(thing is sys.modules[new_module].cycle for thing in gc.get_objects())


def test_nothing_is_kept_when_nothing_is_imported():
    before = gc.get_freeze_count()
    with importing():
        assert isinstance(sys, type(os))
    assert gc.get_freeze_count() == before


def test_garbage_is_looked_for_again_after_a_failed_import():
    was_enabled = gc.isenabled()
    with pytest.raises(ImportError), importing():
        __import__("no_such_module_anywhere")
    assert gc.isenabled() == was_enabled


CLIP = """
import sys
from soundstage.cli.imports import import_for_a_clip
from soundstage.cli.main import run
import_for_a_clip()
before = set(sys.modules)
where, small = ["-o", sys.argv[1], "--model", sys.argv[2]], ["--size", "32x32", "--num-frames", "9"]
assert run(["generate", "a ball", *where, *small, "--steps", "1", "--quiet"]) == 0
print(*sorted(name for name in set(sys.modules) - before - sys.stdlib_module_names if "." not in name))
"""


def test_what_a_plain_clip_imports_later_is_known(tiny_model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CLIP, tmp_path / "clip.mp4", tiny_model],
        capture_output=True,
        text=True,
        check=True,
    )
    written, later = done.stdout.splitlines()
    assert Path(written).exists()
    known = {*imports.LATER, "typeguard", "cython_runtime"}
    assert {name for name in later.split() if not name.startswith("_cython")} <= known


def test_compiled_files_are_written_where_python_is_told_to_write_none(new_module, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(imports, "FOR_A_CLIP", (new_module,))
    imports.compile_for_a_clip()
    assert Path(importlib.util.cache_from_source(str(tmp_path / f"{new_module}.py"))).exists()
    assert sys.dont_write_bytecode
