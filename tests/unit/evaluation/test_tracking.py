from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from soundstage.data.world.bounce import Bounce
from soundstage.data.world.kind import COLOURS
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation.detectors.tracking import track_object

SEEDS = (0, 3, 8, 9, 13, 24)  # every shape but the ball, white among the colours


def true_path(scene, config, attribute):
    times = [frame / float(config.frame_rate) for frame in range(config.num_frames)]
    return torch.tensor([getattr(scene.motion.pose(time), attribute) for time in times])


def true_foot(scene, count=49):
    return torch.tensor([scene.motion.ground - scene.motion.height(frame / 24) for frame in range(count)])


@pytest.mark.parametrize("seed", SEEDS)
def test_object_is_followed_to_a_fraction_of_a_pixel(seen, seed):
    scene, clip = seen(seed)
    track = clip.find(track_object)
    assert track.visible.all()
    off = (track.x - true_path(scene, WorldConfig(), "x")) * 64
    assert off.abs().mean() < 0.6
    foot = (track.foot - true_foot(scene)) * 64
    assert (foot - foot.median()).abs().mean() < 0.8  # pixels, the squash included


def test_object_that_rests_most_of_the_time_is_no_background(render_scene, as_observation):
    """A plain median over time would show it there for good."""
    scene = Bounce.from_seed(2, "held_out")
    still = replace(scene.motion, restitution=0.3, first_impact=0.3, velocity_x=0.0)
    scene = replace(scene, motion=still)
    track = as_observation(*render_scene(scene)).find(track_object)
    assert still.rest_time < 1.0
    assert track.visible.all()
    assert ((track.x - scene.motion.x(0.0)) * 64).abs().max() < 1.0


def test_colour_is_taken_from_the_middle(seen):
    for seed in SEEDS:
        scene, clip = seen(seed)
        colour = clip.find(track_object).colour
        likeness = F.cosine_similarity(colour, torch.tensor(COLOURS[scene.colour]).float(), dim=0)
        assert likeness > 0.98


def test_blurred_clip_is_followed_too(seen, as_observation):
    scene, clip = seen(9)
    pixels = clip.pictures.permute(3, 0, 1, 2) / 127.5 - 1
    blurred = F.avg_pool2d(pixels, 5, stride=1, padding=2, count_include_pad=False)
    blurred = blurred + 0.04 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    track = as_observation(blurred, None).find(track_object)
    assert ((track.x - true_path(scene, WorldConfig(), "x")) * 64).abs().mean() < 0.6


def test_wide_picture_is_measured_in_its_height(render_scene, as_observation):
    config = WorldConfig(width=96, num_frames=25, split="held_out")
    scene = Bounce.from_seed(5, "held_out", duration=config.duration, aspect=1.5)
    track = as_observation(*render_scene(scene, config), config).find(track_object)
    assert ((track.x - true_path(scene, config, "x")) * 64).abs().mean() < 0.5


def test_empty_scene_has_no_object(as_observation, seen):
    background = seen(9)[1].find(track_object).background
    pixels = (background.permute(2, 0, 1) / 127.5 - 1)[:, None].expand(-1, 12, -1, -1)
    track = as_observation(pixels, None).find(track_object)
    assert not track.visible.any()


def test_background_is_the_scene_without_the_object(seen):
    _, clip = seen(3)
    track = clip.find(track_object)
    free = track.coverage < 0.02
    difference = (clip.pictures - track.background).abs().mean(-1)
    assert difference[free].mean() < 2.0
