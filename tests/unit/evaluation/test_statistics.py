import math

import numpy as np
import pytest

from soundstage.evaluation.statistics import (
    correlation,
    difference,
    estimate,
    f1,
    mean,
    mean_magnitude,
    share,
)


def rows(*values):
    return np.array(values, dtype=np.float64)


def test_f1_is_the_harmonic_mean_of_recall_and_precision():
    assert f1(rows((1, 2, 1, 1))) == pytest.approx(2 / 3)
    assert f1(rows((2, 2, 2, 2), (1, 2, 2, 4))) == pytest.approx(2 * 0.75 * (4 / 6) / (0.75 + 4 / 6))


def test_f1_of_nothing_expected_and_nothing_heard_is_perfect():
    assert f1(rows((0, 0, 0, 0))) == 1.0


def test_f1_of_silence_where_sound_is_expected_is_zero():
    assert f1(rows((0, 3, 0, 0))) == 0.0


def test_share_counts_events_not_clips():
    assert share(rows((1, 1), (0, 3))) == 0.25
    assert math.isnan(share(rows((0, 0))))


def test_mean_and_magnitude_differ_by_sign():
    assert mean(rows((-10,), (10,))) == 0.0
    assert mean_magnitude(rows((-10,), (10,))) == 10.0


def test_correlation_of_a_line_is_one_and_of_a_constant_is_unknown():
    assert correlation(rows((0, 1), (1, 3), (2, 5))) == pytest.approx(1.0)
    assert math.isnan(correlation(rows((0, 1), (1, 1), (2, 1))))
    assert math.isnan(correlation(rows((0, 1), (1, 3))))


def test_interval_holds_the_value_and_narrows_with_more_clips():
    rng = np.random.default_rng(0)
    few = estimate([[(x,)] for x in rng.normal(size=10)], mean)
    many = estimate([[(x,)] for x in rng.normal(size=400)], mean)
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 3


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(50):
        result = estimate([[(x,)] for x in rng.normal(size=40)], mean)
        hits += result.low <= 0 <= result.high
    assert hits >= 41  # 47 or so are expected; four standard deviations fewer are 41


def test_clips_are_drawn_whole():
    """Ten equal rows of one clip are one observation, not ten."""
    result = estimate([[(1.0,)] * 10, [(0.0,)] * 10], mean)
    assert (result.low, result.high) == (0.0, 1.0)
    assert (result.num_clips, result.num_rows) == (2, 20)


def test_same_clips_give_the_same_interval():
    clips = [[(float(x),)] for x in range(9)]
    assert estimate(clips, mean) == estimate(clips, mean)


def test_no_evidence_is_no_number():
    result = estimate([[], []], mean)
    assert math.isnan(result.value)
    assert result.num_clips == 0


def test_paired_difference_is_surer_than_an_unpaired_one():
    """What makes one prompt harder than another cancels."""
    rng = np.random.default_rng(0)
    level, gain = rng.normal(size=60), rng.normal(0.1, 0.02, size=60)
    old, new = [[(x,)] for x in level], [[(x,)] for x in level + gain]
    paired, unpaired = (difference(old, new, mean, paired=which) for which in (True, False))
    assert paired.value == pytest.approx(unpaired.value) == pytest.approx(0.1, abs=0.02)
    assert paired.low > 0.08
    assert unpaired.low < 0 < unpaired.high


def test_difference_needs_evidence_on_both_sides():
    assert difference([[(1.0,)]], [[]], mean, paired=False).num_clips == 0
    assert difference([[(1.0,)], []], [[], [(1.0,)]], mean, paired=True).num_clips == 0


def test_bootstrap_by_moments_is_the_bootstrap_of_rows():
    rng = np.random.default_rng(3)
    clips = [[tuple(row) for row in rng.random((3, 2))] for _ in range(12)]
    draws = np.random.default_rng(0).integers(12, size=(100, 12))
    values = [correlation(np.concatenate([clips[index] for index in draw])) for draw in draws]
    result = estimate(clips, correlation)
    assert (result.low, result.high) == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))))
