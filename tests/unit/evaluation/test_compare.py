import json

import pytest

from soundstage.cli.main import run
from soundstage.core.errors import RequestError
from soundstage.evaluation.compare import compare


def report(path, colours, prefix="clip"):
    """A report with the colour right or wrong in each of some clips."""
    clips = [
        {
            "file": f"generated/{prefix}-{index}.mp4",
            "kind": "bounce",
            "caption": str(index),
            "evidence": {"colour": [[float(right)]]},
        }
        for index, right in enumerate(colours)
    ]
    path.write_text(json.dumps({"format": 2, "groups": {"generated": {"clips": clips}}, "codec": None}))
    return path


def test_difference_of_the_same_clips_is_paired(tmp_path):
    old = report(tmp_path / "old.json", [0, 1] * 20)
    new = report(tmp_path / "new.json", [1, 1] * 20)
    (change,) = compare(old, new)
    assert (change.old, change.new, change.difference.value) == (0.5, 1.0, 0.5)
    assert change.is_paired
    assert change.is_clear


def test_difference_of_nothing_is_exactly_nothing_when_paired(tmp_path):
    old = report(tmp_path / "old.json", [0, 1] * 20)
    new = report(tmp_path / "new.json", [0, 1] * 20)
    (change,) = compare(old, new)
    assert (change.difference.low, change.difference.high) == (0, 0)
    assert not change.is_clear


def test_other_clips_are_compared_with_wider_intervals(tmp_path):
    old = report(tmp_path / "old.json", [0, 1] * 20)
    new = report(tmp_path / "new.json", [0, 1] * 20, prefix="other")
    (change,) = compare(old, new)
    assert not change.is_paired
    assert change.difference.low < 0 < change.difference.high


@pytest.mark.parametrize(
    ("text", "message"), [("{}", "format None"), ("no", "no JSON"), (None, "cannot read")]
)
def test_what_is_no_report_is_refused(tmp_path, text, message):
    path = tmp_path / "old.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=message):
        compare(path, report(tmp_path / "new.json", [1]))


def test_command_shows_what_changed(tmp_path, capsys):
    old = report(tmp_path / "old.json", [0, 1] * 20)
    new = report(tmp_path / "new.json", [1, 1] * 20)
    assert run(["evaluate", "--compare", str(old), str(new)]) == 0
    out = capsys.readouterr().out
    assert "colour as said" in out
    assert "0.500" in out
    assert run(["evaluate", "--compare", str(old), str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["clear"] is True
