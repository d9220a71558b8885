"""Scenes: what may be drawn, what is kept from training, and what mirroring changes."""

import itertools
import json
import subprocess
import sys
from collections import Counter

import pytest

from soundstage.core.errors import RequestError
from soundstage.data.world.bounce import (
    BACKGROUNDS,
    CEILING,
    CLIP_SECONDS,
    COLOURS,
    FLOORS,
    GROUND,
    MARGIN_SECONDS,
    SHAPES,
    SIZES,
    Bounce,
    is_held_out,
)

SCENES = [Bounce.from_seed(seed) for seed in range(400)]
HELD_OUT = [Bounce.from_seed(seed, "held_out") for seed in range(100)]
EXPECTED_SEVEN = ("large", "yellow", "ring", "glass")
EXPECTED_FIRST_IMPACT = 0.18024775680195515
EXPECTED_HELD_OUT = ["blue ball metal", "blue ball wood", "blue ring wood"]
COMBINATIONS = [(colour, shape, floor) for colour in COLOURS for shape in SHAPES for floor in FLOORS]


def combination(scene):
    return scene.colour, scene.shape, scene.floor


def test_a_seed_always_gives_the_same_scene():
    assert [Bounce.from_seed(seed) for seed in range(20)] == SCENES[:20]
    assert SCENES[0] != SCENES[1]


def test_the_scene_of_a_seed_is_the_same_on_every_machine():
    scene = SCENES[7]
    assert (scene.size, scene.colour, scene.shape, scene.floor) == EXPECTED_SEVEN
    assert scene.events[0].time == pytest.approx(EXPECTED_FIRST_IMPACT, abs=1e-12)


def test_every_attribute_is_drawn():
    assert {scene.colour for scene in SCENES} == set(COLOURS)
    assert {scene.shape for scene in SCENES} == set(SHAPES)
    assert {scene.size for scene in SCENES} == set(SIZES)
    assert {scene.floor for scene in SCENES} == set(FLOORS)
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS)
    directions = Counter(scene.direction for scene in SCENES)
    assert min(directions.values()) > 50
    assert set(directions) == {"left", "right", "down"}


def test_training_never_sees_a_held_out_combination():
    assert not any(is_held_out(*combination(scene)) for scene in SCENES)
    assert all(is_held_out(*combination(scene)) for scene in HELD_OUT)


def test_about_a_tenth_of_the_combinations_is_held_out_and_each_attribute_occurs():
    held_out = [entry for entry in COMBINATIONS if is_held_out(*entry)]
    assert 0.07 <= len(held_out) / len(COMBINATIONS) <= 0.14
    for index, values in enumerate((COLOURS, SHAPES, FLOORS)):
        assert {entry[index] for entry in held_out} == set(values)


def test_what_is_held_out_never_changes():
    assert not is_held_out("red", "ball", "wood")  # the example prompt can be trained on
    held_out = sorted(" ".join(entry) for entry in COMBINATIONS if is_held_out(*entry))
    assert len(held_out) == 20
    assert held_out[:3] == EXPECTED_HELD_OUT


def test_the_object_is_at_least_eight_pixels_in_radius_at_64():
    assert all(scene.radius * 64 >= 8 for scene in SCENES)


def test_a_training_clip_has_two_to_six_impacts():
    counts = Counter(len(scene.events_before(CLIP_SECONDS)) for scene in SCENES)
    assert set(counts) <= {2, 3, 4, 5, 6}
    assert counts[3] + counts[4] + counts[5] > 300


def test_the_first_impact_varies():
    first = sorted(scene.events[0].time for scene in SCENES)
    assert first[0] < 0.2
    assert first[-1] > 0.6


def test_impacts_are_far_enough_apart_to_be_told_apart():
    gaps = [
        later.time - earlier.time for scene in SCENES for earlier, later in itertools.pairwise(scene.events)
    ]
    assert min(gaps) > 0.1


def test_the_object_stays_in_the_picture_past_the_end_of_the_clip():
    for scene in SCENES[:40] + HELD_OUT[:10]:
        for step in range(64):
            pose = scene.motion.pose(step / 25)
            assert scene.radius <= pose.x <= scene.aspect - scene.radius
            assert pose.y - scene.radius >= CEILING - 1e-9
            assert pose.y <= GROUND


def test_the_drift_never_turns_round_in_the_clip():
    for scene in SCENES[:60]:
        xs = [scene.motion.x(step / 20) for step in range(int((CLIP_SECONDS + MARGIN_SECONDS) * 20))]
        steps = [later - earlier for earlier, later in itertools.pairwise(xs)]
        if scene.direction == "right":
            assert min(steps) >= 0
        elif scene.direction == "left":
            assert max(steps) <= 0
        else:
            assert set(steps) == {0.0}


def test_the_drift_can_be_seen():
    for scene in SCENES:
        if scene.direction != "down":
            moved = abs(scene.motion.x(CLIP_SECONDS) - scene.motion.x(0.0))
            assert moved > 0.2  # 13 of 64 pixels


def test_events_continue_after_the_clip():
    late = [scene for scene in SCENES if any(event.time > CLIP_SECONDS for event in scene.events)]
    assert len(late) > 50
    assert all(event.time < 1.0 for scene in SCENES for event in scene.events_before(1.0))


def test_events_name_the_floor_and_lie_on_it():
    for scene in SCENES[:50]:
        for event in scene.events:
            assert event.sound == scene.floor
            assert event.y == GROUND
            assert event.x == pytest.approx(scene.motion.x(event.time))


def test_mirroring_swaps_the_sides():
    for scene in SCENES[:50]:
        mirrored = scene.mirrored()
        swapped = {"left": "right", "right": "left", "down": "down"}
        assert mirrored.direction == swapped[scene.direction]
        assert mirrored.flipped != scene.flipped
        assert mirrored.noise == scene.noise
        for event, other in zip(scene.events, mirrored.events, strict=True):
            assert (other.time, other.strength) == (event.time, event.strength)
            assert other.x == pytest.approx(scene.aspect - event.x)
            assert mirrored.pan(other.x) == pytest.approx(1 - scene.pan(event.x))


def test_mirroring_twice_changes_nothing():
    scene = SCENES[3]
    again = scene.mirrored().mirrored()
    assert again.motion.start_x == pytest.approx(scene.motion.start_x)
    assert again.events[0].x == pytest.approx(scene.events[0].x)
    assert (again.flipped, again.noise) == (scene.flipped, scene.noise)


def test_a_wide_picture_gives_more_room():
    wide = [Bounce.from_seed(seed, aspect=2.0) for seed in range(40)]
    assert max(scene.motion.start_x for scene in wide) > 1.3


def test_a_long_clip_moves_slower_but_rests_in_the_end():
    scene = Bounce.from_seed(0, duration=10.0)
    assert scene.motion.rest_time < 10
    assert scene.motion.pose(9.0).y == pytest.approx(scene.motion.pose(10.0).y)


def test_plain_data_can_be_written_as_json():
    scene = SCENES[0]
    data = json.loads(json.dumps(scene.facts()))
    assert data["colour"] == scene.colour
    assert data["direction"] == scene.direction


def test_a_narrow_picture_is_refused():
    with pytest.raises(RequestError, match=r"below 0\.75"):
        Bounce.from_seed(0, aspect=0.5)


def test_a_duration_of_nothing_is_refused():
    with pytest.raises(RequestError, match="positive"):
        Bounce.from_seed(0, duration=0.0)


def test_scene_motion_and_caption_need_no_torch():
    names = ("scene", "bounce", "motion", "bounce_caption")
    modules = ", ".join(f"soundstage.data.world.{name}" for name in names)
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
