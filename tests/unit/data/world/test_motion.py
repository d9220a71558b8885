"""Motion is checked against numbers worked out by hand and against finite differences."""

import math
from dataclasses import replace

import pytest

from soundstage.data.world.motion import MAX_SQUASH, REST_SPEED, SQUASH_TIME, Motion

DROP = Motion(
    gravity=4.0,
    restitution=0.5,
    first_impact=0.5,
    first_speed=2.0,
    start_x=0.2,
    velocity_x=0.1,
    ground=0.9,
    foot=0.1,
    reach=(0.1, 0.9),
)


def test_impacts_follow_gravity_and_restitution():
    # Up at 1.0 for 2 * 1 / 4 = 0.5 s, up at 0.5 for 0.25 s; then 0.25 is below the speed that is heard.
    assert [impact.time for impact in DROP.impacts] == pytest.approx([0.5, 1.0, 1.25])
    assert [impact.speed for impact in DROP.impacts] == pytest.approx([2.0, 1.0, 0.5])
    assert [impact.x for impact in DROP.impacts] == pytest.approx([0.25, 0.30, 0.325])
    assert {impact.y for impact in DROP.impacts} == {0.9}


def test_no_impact_is_slower_than_what_can_be_heard():
    for restitution in (0.3, 0.6, 0.85, 0.95):
        motion = replace(DROP, restitution=restitution)
        assert min(impact.speed for impact in motion.impacts) >= REST_SPEED


def test_the_object_touches_the_floor_exactly_at_each_impact():
    for impact in DROP.impacts:
        assert DROP.height(impact.time) == pytest.approx(0, abs=1e-12)
        assert DROP.height(impact.time - 0.01) > 0
        assert DROP.height(impact.time + 0.01) > 0


def test_the_first_flight_ends_with_the_first_impact():
    # 0.5 s before an impact at 2.0 heights/s the speed was 0: the object is dropped from 2^2 / (2 * 4).
    assert DROP.height(0.0) == pytest.approx(0.5)
    assert DROP.pose(0.0).y == pytest.approx(0.9 - 0.1 - 0.5)


def test_height_is_a_parabola_between_impacts():
    step = 1e-3
    for time in (0.2, 0.7, 1.1):
        around = [DROP.height(time + k * step) for k in (-1, 0, 1)]
        assert (around[0] - 2 * around[1] + around[2]) / step**2 == pytest.approx(-4.0, rel=1e-3)


def test_the_object_rests_after_the_last_bounce_and_slides_to_a_stop():
    assert DROP.rest_time == pytest.approx(1.25 + 2 * 0.25 / 4)
    assert DROP.height(DROP.rest_time + 0.01) == 0
    assert DROP.height(100.0) == 0
    end = DROP.x(100.0)
    assert DROP.x(DROP.rest_time) < end < 0.4
    assert DROP.x(50.0) == pytest.approx(end)


def test_sideways_motion_has_constant_speed_until_rest():
    assert DROP.x(1.0) - DROP.x(0.5) == pytest.approx(0.05)


def test_the_object_turns_round_at_the_edges():
    fast = replace(DROP, velocity_x=2.0, start_x=0.8)
    assert fast.x(0.05) == pytest.approx(0.9)
    assert fast.x(0.15) == pytest.approx(0.7)
    assert all(0.1 <= fast.x(k / 100) <= 0.9 for k in range(300))


def test_an_object_without_room_stays_in_the_middle():
    assert replace(DROP, reach=(0.6, 0.5)).x(1.0) == pytest.approx(0.55)


def test_squash_starts_with_the_impact_and_fades():
    impact = DROP.impacts[0]
    assert DROP.pose(impact.time - 1e-6).squash == 0
    start = DROP.pose(impact.time).squash
    assert 0 < start <= MAX_SQUASH
    assert DROP.pose(impact.time + SQUASH_TIME).squash == pytest.approx(start / math.e)


def test_a_harder_impact_squashes_more():
    first, second, _ = (DROP.pose(impact.time).squash for impact in DROP.impacts)
    assert first > second


def test_a_squashed_object_still_stands_on_the_floor():
    pose = DROP.pose(DROP.impacts[0].time)
    assert pose.y + DROP.foot * (1 - pose.squash) == pytest.approx(DROP.ground)


def test_poses_are_the_poses_of_each_time():
    times = [0.0, 0.3, 1.7]
    assert DROP.poses(times) == [DROP.pose(time) for time in times]
