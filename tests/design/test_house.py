"""The shape of the house: what no type checker sees, held by tests."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "soundstage"
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 450
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".cfg", ".html", ".js", ".css", ""}
BINARY_SUFFIXES = {".safetensors", ".mp4", ".png", ".jpg", ".wav"}


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_files():
    return [path for path in tracked_files() if path.suffix in TEXT_SUFFIXES]


def name_of(path):
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def test_imports_point_down_only():
    checked = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_package_is_in_a_layer():
    """A new top-level package must be given its place, or the contract would not see it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name.strip() for row in contracts[0]["layers"] for name in row.split("|")}
    packages = {f"soundstage.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
    assert packages - {"soundstage.assets"} <= layers


@pytest.mark.parametrize(
    "pattern",
    [
        "core/errors.py",
        "core/geometry.py",
        "core/config.py",
        "core/progress.py",
        "core/files.py",
        "data/world/scene.py",
        "data/world/motion.py",
        "data/world/camera.py",
        "data/world/kind.py",
        "data/world/bounce.py",
        "data/world/bounce_caption.py",
        "pipelines/request.py",
        "pipelines/given.py",
        "pipelines/inputs.py",
        "cli/*.py",
    ],
)
def test_plain_modules_load_without_torch(pattern):
    files = sorted(SOURCE.glob(pattern))
    assert files, f"{pattern} matches nothing"
    modules = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in files]
    imports = "\n".join(f"import {module}" for module in modules)
    program = f"import sys\n{imports}\nprint('torch' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "False"


def test_sub_packages_are_empty_doors():
    for path in SOURCE.glob("**/__init__.py"):
        if path.parent != SOURCE:
            assert path.read_text() == "", name_of(path)


def test_a_file_is_one_idea():
    too_long = {name_of(path) for path in MODULES if len(path.read_text().splitlines()) > MAX_LINES}
    assert too_long == set()


def test_every_module_opens_with_what_it_is_for():
    silent = {name_of(path) for path in MODULES if path.stat().st_size and not ast.get_docstring(tree(path))}
    assert silent == set()


def test_annotations_stay_real():
    """Postponed annotations are strings, which blinds the shape checker."""
    postponed = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    }
    assert postponed == set()


def test_no_module_is_a_drawer():
    drawers = {"utils", "util", "helpers", "misc", "base", "common", "manager"}
    assert [name_of(path) for path in MODULES if drawers & {path.stem, path.parent.name}] == []


def test_nothing_is_left_to_do():
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b|NotImplemented" + r"Error")
    found = [name_of(path) for path in text_files() if words.search(path.read_text())]
    assert found == []


def test_tracked_files_name_no_machine():
    """Paths of the machine something was written on help nobody else."""
    machine = re.compile(r"(?<![\w.])/(work|home|root|Users|tmp/[a-z])[/\w]")
    found = {name_of(path) for path in text_files() if machine.search(path.read_text())}
    assert found == set()


def test_binary_files_are_marked_as_such():
    attributes = (ROOT / ".gitattributes").read_text()
    kinds = {path.suffix for path in tracked_files()} & BINARY_SUFFIXES
    assert {kind for kind in kinds if f"*{kind} binary" not in attributes} == set()


def test_pinned_versions_carry_no_address():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line) for line in lines)


def test_every_requirement_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        r for group in project["optional-dependencies"].values() for r in group
    ]
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    names = {re.match(r"[A-Za-z0-9_-]+", requirement)[0].lower() for requirement in wanted}
    unpinned = {name for name in names if f"\n{name}==" not in pins}
    assert unpinned == {"triton"}  # every CUDA build of torch asks for one version, its own
