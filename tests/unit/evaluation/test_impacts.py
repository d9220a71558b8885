import numpy as np
import pytest
import torch

from soundstage.data.world.bounce import Bounce
from soundstage.data.world.kind import CLIP_SECONDS
from soundstage.evaluation.detectors.impacts import CLEAR_SPEED, find_impacts
from soundstage.evaluation.detectors.tracking import Track, track_object
from soundstage.evaluation.observation import Observation


def track_of(foot, x=None):
    """A track with a given path and nothing else."""
    foot = torch.as_tensor(foot, dtype=torch.float32)
    return Track(
        x=torch.full_like(foot, 0.5) if x is None else x,
        y=foot - 0.1,
        foot=foot,
        area=torch.full_like(foot, 0.03),
        visible=torch.ones(len(foot), dtype=torch.bool),
        colour=torch.zeros(3),
        coverage=torch.zeros(len(foot), 4, 4),
        background=torch.zeros(4, 4, 3),
    )


def impacts_of(foot, clip):
    """Impacts of a path, past the tracker."""
    fresh = Observation(clip.clip, clip.timing)
    fresh._found[track_object] = track_of(foot)
    return fresh.find(find_impacts)


def path(scene, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    exact = [scene.motion.ground - scene.motion.height(frame / 24) for frame in range(49)]
    return np.array(exact) + noise * rng.normal(size=49)


def wanted(scene, faster_than=1.3 * CLEAR_SPEED):
    return [e.time for e in scene.events_before(CLIP_SECONDS - 0.1) if e.strength > faster_than]


def distance(impacts, time):
    return min((abs(impact.time - time) for impact in impacts), default=9.0)


@pytest.mark.parametrize("seed", range(12))
def test_exact_path_gives_times_to_a_few_milliseconds(seen, seed):
    scene = Bounce.from_seed(seed)
    impacts = impacts_of(path(scene), seen(0)[1])
    assert all(distance(impacts, time) < 0.004 for time in wanted(scene))


def test_a_third_of_a_pixel_of_noise_costs_little(seen):
    errors = []
    for seed in range(12):
        scene = Bounce.from_seed(seed)
        impacts = impacts_of(path(scene, noise=0.33 / 64, seed=seed), seen(0)[1])
        errors += [distance(impacts, time) for time in wanted(scene)]
    assert np.mean(np.array(errors) < 0.03) > 0.95
    assert np.median(errors) < 0.006


def test_clear_impacts_are_real(seen):
    for seed in range(12):
        scene = Bounce.from_seed(seed)
        times = [event.time for event in scene.events]
        for impact in impacts_of(path(scene), seen(0)[1]):
            if impact.is_clear:
                assert min(abs(impact.time - time) for time in times) < 0.02


def test_speed_is_that_before_the_contact(seen):
    scene = Bounce.from_seed(1)
    first = scene.events[0]
    impact = impacts_of(path(scene), seen(0)[1])[0]
    assert impact.speed == pytest.approx(first.strength, rel=0.1)


def test_object_at_rest_or_floating_hits_nothing(seen):
    assert impacts_of(np.full(49, 0.86), seen(0)[1]) == ()
    assert impacts_of(0.5 + 0.05 * np.sin(np.arange(49) / 8), seen(0)[1]) == ()


def test_turning_in_the_air_is_no_impact(seen):
    """Half way down and up again: only what touches the usual floor counts."""
    scene = Bounce.from_seed(1)
    foot = path(scene)
    bump = 0.86 - 0.4 + 0.1 * np.abs(np.linspace(-1, 1, 7)) * -1
    times = [impact.time for impact in impacts_of(np.concatenate((bump, foot[7:])), seen(0)[1])]
    assert all(abs(time - 3 / 24) > 0.03 for time in times)


def test_world_clips_give_times_to_a_few_milliseconds(seen):
    errors = []
    for seed in (0, 3, 9, 13):
        scene, clip = seen(seed)
        errors += [distance(clip.find(find_impacts), time) for time in wanted(scene)]
    assert np.mean(errors) < 0.006
    assert max(errors) < 0.02


def test_compressed_clip_gives_times_to_a_few_milliseconds(world_file):
    _, scene, clip = world_file
    assert max(distance(clip.find(find_impacts), time) for time in wanted(scene)) < 0.01


def test_place_is_the_objects(seen):
    scene, clip = seen(9)
    impact = clip.find(find_impacts)[0]
    assert impact.x == pytest.approx(scene.motion.x(impact.time), abs=0.02)


def test_clip_of_few_frames_has_no_impacts(as_observation):
    assert as_observation(torch.zeros(3, 2, 32, 32), None).find(find_impacts) == ()
