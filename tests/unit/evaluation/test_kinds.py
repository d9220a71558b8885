"""Detectors of the kinds of scenes beyond one bouncing object, on the world's own clips."""

import pytest

from soundstage.data.world.sample import World, WorldConfig
from soundstage.evaluation import validation
from soundstage.evaluation.cases import world_cases
from soundstage.evaluation.detectors import ambience
from soundstage.evaluation.detectors.contacts import find_contacts
from soundstage.evaluation.detectors.events import EVENTS, seen_events
from soundstage.evaluation.detectors.objects import track_objects
from soundstage.evaluation.expectation import expected_of
from soundstage.evaluation.measure import score
from soundstage.evaluation.metrics.playing import common_length, note_counts
from soundstage.evaluation.validation import validate

CONFIG = WorldConfig(kinds=("objects",), plain=True)


def observed(as_observation, scene):
    world = World(WorldConfig())
    return as_observation(world.pixels([scene])[0], world.waveform([scene])[0])


@pytest.fixture(scope="module")
def rolling(as_observation):
    """A scene in which one object rolls against walls."""
    world = World(CONFIG)
    scene = next(s for seed in range(1, 99) if (s := world.scene(seed)).subject.action == "roll")
    return scene, observed(as_observation, scene)


def test_marks_on_what_rolls_are_no_further_object(rolling):
    scene, clip = rolling
    assert set(clip.find(track_objects)) == {scene.subject.bodies[0].colour}


def test_walls_are_hit_when_they_are(rolling):
    scene, clip = rolling
    times = [contact.time for contact in clip.find(find_contacts)]
    for event in scene.events_before(1.8):
        assert min(abs(time - event.time) for time in times) < 0.03


@pytest.mark.parametrize("action", ["collide", "several"])
def test_objects_are_told_apart_by_colour(as_observation, action):
    """None of them white, which is the colour of marks and often missed."""
    world = World(CONFIG)
    for seed in range(1, 99):
        scene = world.scene(seed)
        colours = {body.colour for body in scene.subject.bodies}
        if scene.subject.action == action and len(colours) == 2 and "white" not in colours:
            break
    assert set(observed(as_observation, scene).find(track_objects)) == colours


@pytest.mark.parametrize("kind", ["clock", "xylophone"])
def test_what_is_seen_to_happen_is_when_it_sounds(as_observation, kind):
    (case,) = world_cases(WorldConfig(), (kind,), 1, 2)
    clip = observed(as_observation, case.scene)
    clear = [event for event in seen_events(clip, {"kind": kind}) if event.is_clear]
    events = case.scene.events_before(2.0)
    assert clear
    for event in clear:
        assert min(abs(event.time - true.time) for true in events) < 0.02


def test_metrics_of_other_kinds_say_nothing(rolling):
    scene, clip = rolling
    scores = score(clip, {"kind": "objects", "colours": scene.subject.bodies[0].colour})
    assert scores["colours"] == [(1.0,)]
    assert scores["impact_f1_80ms"]
    assert not scores["notes"]
    assert not scores["tracked"]
    assert not scores["silent"]


def test_longest_common_sequence():
    assert common_length(["a", "b", "c", "d"], ["a", "c", "d"]) == 3
    assert common_length(["a", "b"], ["b", "a"]) == 1
    assert common_length([], ["a"]) == 0
    assert note_counts(["c", "d"], {"notes": "c d e"}) == [(2, 3)]
    assert note_counts(["c"], {}) == []


def test_ambience_is_named_by_looks_and_by_sound(as_observation, monkeypatch):
    monkeypatch.setattr(ambience, "NUM_EXAMPLES", 3)
    ambience._judge.cache_clear()
    cases = world_cases(WorldConfig(num_frames=25), ("ambience",), 4, 3)
    for case in cases:
        world = World(WorldConfig(num_frames=25))
        clip = as_observation(world.pixels([case.scene])[0], world.waveform([case.scene])[0])
        assert clip.find(ambience.find_seen_ambience).element == case.scene.subject.element
        assert clip.find(ambience.find_heard_ambience).element == case.scene.subject.element
    ambience._judge.cache_clear()


def test_detectors_of_a_kind_are_validated(monkeypatch):
    monkeypatch.setattr(validation, "SHIFTS", (0.04,))
    config = WorldConfig(tail=0.25)
    checks = {check.title: check for check in validate(world_cases(config, ("xylophone",), 1, 2), config)}
    assert checks["notes by ear named right, share"].measured == 1
    assert checks["event time, mean absolute error"].measured < 10
    assert checks["median delay of sound where it is +40 ms"].measured == pytest.approx(40, abs=10)
    assert all(check.kind == "xylophone" for check in checks.values())


def test_every_kind_with_moments_is_read_from_captions():
    cases = world_cases(WorldConfig(), tuple(EVENTS), 2, 1)
    assert {expected_of(case.caption)["kind"] for case in cases} >= set(EVENTS) - {"varied"}
