import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from soundstage.evaluation.bars import BARS, Bar, drop, judge
from soundstage.evaluation.metrics.registry import METRICS
from soundstage.evaluation.report import bar_table, plain
from soundstage.evaluation.results import CEILING, GENERATED, ClipResult, GroupResult, SuiteResult


def clip(number, unseen, **right):
    scores = {name: [] for name in METRICS}
    scores |= {name: [(float(value),)] for name, value in right.items()}
    return ClipResult(
        path=Path(f"{number}.mp4"),
        kind="bounce",
        unseen=unseen,
        caption="",
        expected={},
        found={},
        scores=scores,
        picture=b"",
    )


@pytest.fixture
def result(tmp_path):
    """Seen combinations have the right colour, half of the unseen ones have not; shapes are always right."""
    clips = [
        clip(tmp_path / str(number), number % 2 == 0, colour=number % 4 != 0, shape=1) for number in range(40)
    ]
    return SuiteResult(
        suite="world",
        directory=tmp_path,
        model="tiny",
        num_clips=40,
        seed=1,
        request={},
        groups=(GroupResult(title=GENERATED, clips=tuple(clips), seconds_per_clip=1.0),),
    )


def judged(result, title):
    return next(one for one in judge(result) if one.bar.title == title)


def test_bar_takes_the_metric_of_its_group(result):
    colour = judged(result, "colour as said")
    assert colour.value.value == 0.75
    assert colour.value.low < 0.75 < colour.value.high
    assert math.isnan(colour.ceiling.value)
    ceiling = replace(result.groups[0], title=CEILING)
    assert judged(replace(result, groups=(*result.groups, ceiling)), "colour as said").ceiling.value == 0.75


def test_drop_is_that_of_unseen_combinations(result):
    assert drop(result, GENERATED, over=np.max).value == pytest.approx(0.5)
    assert drop(result, GENERATED, over=np.mean).value == pytest.approx(0.25)  # colour and shape
    assert result.groups[0].change("colour", ("bounce",)).value == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("aim", "value", "met"),
    [
        ("least", 2.0, True),
        ("least", 1.9, False),
        ("most", 2.0, True),
        ("most", -9.0, True),
        ("most", 2.1, False),
        ("magnitude", -2.0, True),
        ("magnitude", -2.1, False),
        ("least", math.nan, None),
    ],
)
def test_limits_hold_in_their_direction(aim, value, met):
    bar = Bar(title="", measure=lambda *_: None, gpu=2.0, cpu=2.0, aim=aim)
    assert bar.is_met(value, 2.0) is met


def test_table_has_a_row_for_every_bar_and_says_what_is_missed(result):
    table = bar_table(judge(result))
    assert len(table.rows) == len(BARS)
    rows = {row[0]: row for row in table.rows}
    assert rows["colour as said"][4:6] == ("missed", "missed")
    assert rows["shape as said"][4:6] == ("met", "met")
    assert rows["video VAE: PSNR"][3:6] == ("–", "–", "–")


def test_bars_are_written_for_machines(result):
    bars = {bar["title"]: bar for bar in plain(result)["bars"]}
    assert bars["colour as said"]["value"] == 0.75
    assert bars["colour as said"]["cpu"] == {"limit": 0.97, "met": False}
    assert bars["video VAE: PSNR"]["value"] is None
