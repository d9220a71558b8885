from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from soundstage.evaluation.matching import match_times

TIMES = st.lists(st.floats(0, 2), max_size=7).map(sorted)


def pairs(*arguments):
    return [(pair.first, pair.second) for pair in match_times(*arguments)]


def test_each_event_takes_the_nearest():
    assert pairs([0.5, 1.0], [0.52, 0.7, 0.98], 0.1) == [(0, 0), (1, 2)]


def test_nothing_beyond_the_tolerance():
    assert pairs([0.5], [0.61], 0.1) == []
    assert pairs([0.5], [0.59], 0.1) == [(0, 0)]


def test_one_onset_serves_one_impact():
    assert len(match_times([0.5, 0.55], [0.52], 0.1)) == 1


def test_more_pairs_come_before_closer_pairs():
    """The first impact could take the onset that is the second's only one."""
    assert pairs([0.50, 0.58], [0.44, 0.51], 0.08) == [(0, 0), (1, 1)]


def test_difference_is_second_minus_first():
    assert abs(match_times([1.0], [1.03], 0.1)[0].difference - 0.03) < 1e-12


def test_empty_lists_have_no_pairs():
    assert match_times([], [1.0], 0.1) == []
    assert match_times([1.0], [], 0.1) == []


@given(TIMES, TIMES)
def test_exchanging_the_lists_exchanges_the_pairs(first, second):
    forth, back = match_times(first, second, 0.1), match_times(second, first, 0.1)
    assert len(forth) == len(back)
    assert abs(sum(abs(p.difference) for p in forth) - sum(abs(p.difference) for p in back)) < 1e-9


@given(TIMES, TIMES)
def test_wider_tolerance_never_loses_pairs(first, second):
    assert len(match_times(first, second, 0.05)) <= len(match_times(first, second, 0.2))


@given(TIMES, TIMES)
def test_pairs_are_one_to_one_and_in_order(first, second):
    found = match_times(first, second, 0.3)
    for before, after in pairwise(found):
        assert before.first < after.first
        assert before.second < after.second
