"""The benchmark of limited attention runs, and its two ways agree."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "attention_limits.py"


@pytest.mark.parametrize("name", ["timed prompts, embedded model", "reference, strength 0.5, embedded model"])
def test_both_ways_agree(name: str) -> None:
    script = runpy.run_path(str(SCRIPT))
    report = script["measure"](script["CASES"][name](), heads=1, rounds=1)
    assert report["error"] < 1e-6
    assert 0 < report["bytes held"] < report["bytes of a bias, plain"]
