"""`soundstage verify` as a person or a script meets it; what it checks is tested in tests/parity."""

import json
import shutil

import pytest

from golden_cases import GOLDEN, manifest
from soundstage.cli.main import run

CASES = ("rope.apply.split", "guidance.multimodal.all", "vocoder.2.0.normal")


@pytest.fixture
def folder(tmp_path):
    """A few quick cases."""
    specs = [case for case in manifest()["cases"] if case["id"] in CASES]
    checkpoint = manifest()["checkpoints"]["ltx2.0"]
    for name in (*(case["file"] for case in specs), checkpoint["file"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(GOLDEN / name, tmp_path / name)
    content = {"format": 1, "checkpoints": {"ltx2.0": checkpoint}, "cases": specs}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return tmp_path


def break_case(folder, case_id):
    """Ask for a tolerance that nothing meets."""
    content = json.loads((folder / "manifest.json").read_text())
    for case in content["cases"]:
        if case["id"] == case_id:
            case["component"] = "unheard-of"
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_good_installation_gives_a_table_and_status_0(folder, capsys):
    assert run(["verify", str(folder)]) == 0
    shown = capsys.readouterr().out
    head, *rows, closing = shown.splitlines()
    assert head.split() == ["case", "max", "error", "relative", "tolerance", "result"]
    assert {row.split()[0] for row in rows} == set(CASES)
    assert all(row.endswith("pass") for row in rows)
    assert closing.startswith("3 of 3 passed on cpu in float32")


def test_one_failure_gives_its_reason_and_status_1(folder, capsys):
    break_case(folder, "rope.apply.split")
    assert run(["verify", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "FAIL\n    RequestError: unknown component 'unheard-of'" in shown
    assert "2 of 3 passed" in shown


def test_the_same_for_machines(folder, capsys):
    break_case(folder, "rope.apply.split")
    assert run(["verify", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["num_cases"], report["num_failed"]) == (False, 3, 1)
    assert (report["device"], report["dtype"]) == ("cpu", "float32")
    cases = {case["id"]: case for case in report["cases"]}
    good, bad = cases["vocoder.2.0.normal"], cases["rope.apply.split"]
    assert good["passed"]
    assert good["max_error"] < 1e-4
    assert good["relative_error"] < 1e-4
    assert not bad["passed"]
    assert bad["max_error"] is None


def test_other_number_formats_are_named(folder, capsys):
    assert run(["verify", str(folder), "--dtype", "bfloat16"]) == 0
    assert "in bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "manifest.json does not exist"),
        ([".", "--device", "tpu"], "device 'tpu' is not here; there is cpu"),
    ],
)
def test_bad_requests_are_one_line_and_status_2(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["verify", *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_the_recorded_cases_of_this_repository_are_readable_by_anyone():
    assert (GOLDEN / "manifest.json").is_file()
