"""What an object looks like, what a floor looks and sounds like, where it goes and where it is heard."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from soundstage.core.rng import generator
from soundstage.data.world.bounce import FLOORS, SHAPES, SIZES, Bounce
from soundstage.evaluation.detectors.floor import find_floor
from soundstage.evaluation.detectors.motion import find_direction
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.detectors.panning import find_pans
from soundstage.evaluation.detectors.silhouette import find_colour, find_outline, find_shape, find_size
from soundstage.evaluation.detectors.timbre import find_timbre

SEEDS = (0, 3, 8, 9, 13, 24)


@pytest.mark.parametrize("seed", SEEDS)
def test_world_clips_are_named_right(seen, seed):
    scene, clip = seen(seed)
    assert clip.find(find_colour) == scene.colour
    assert clip.find(find_shape) == scene.shape
    assert clip.find(find_size) == scene.size
    assert clip.find(find_floor) == scene.floor
    assert clip.find(find_timbre) == scene.floor
    assert clip.find(find_direction) == scene.direction


def test_compressed_clip_is_named_right(world_file):
    _, scene, clip = world_file
    assert clip.find(find_shape) == scene.shape
    assert clip.find(find_size) == scene.size
    assert clip.find(find_floor) == scene.floor
    assert clip.find(find_timbre) == scene.floor


@pytest.mark.parametrize(("shape", "size"), list(zip(SHAPES, [*SIZES, *SIZES], strict=False)))
def test_every_shape_is_known(render_scene, as_observation, shape, size):
    scene = Bounce.from_seed(11)
    motion = replace(scene.motion, foot=SIZES[size] * SHAPES[shape])
    scene = replace(scene, shape=shape, size=size, colour="blue", motion=motion)
    outline = as_observation(render_scene(scene)[0], None).find(find_outline)
    assert outline.shape == shape
    assert outline.radius == pytest.approx(SIZES[size], rel=0.1)
    assert outline.likeness > 0.95


def test_soft_outline_is_not_taken_for_another_shape(seen, as_observation):
    for seed in (3, 24):
        scene, clip = seen(seed)
        pixels = clip.pictures.permute(3, 0, 1, 2) / 127.5 - 1
        soft = F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
        assert as_observation(soft, None).find(find_shape) == scene.shape


@pytest.mark.parametrize("seed", [2, 13])
def test_clip_smeared_over_time_is_named_right(seen, as_observation, seed):
    """Where an object rests on glass, a naive median shows it, and the pale floor seems to move."""
    scene, clip = seen(seed)
    pixels = (clip.pictures.permute(3, 0, 1, 2) / 127.5 - 1)[None]
    smeared = F.avg_pool3d(pixels, (4, 1, 1), 1, (2, 0, 0), count_include_pad=False)[0, :, :49]
    seen_again = as_observation(smeared, None)
    assert seen_again.find(find_colour) == scene.colour
    assert seen_again.find(find_shape) == scene.shape


@pytest.mark.parametrize("floor", FLOORS)
def test_floor_looks_and_sounds_apart(render_scene, as_observation, floor):
    """The same scene on every floor: only the floor differs."""
    pixels, waveform = render_scene(replace(Bounce.from_seed(4), floor=floor))
    clip = as_observation(pixels, waveform)
    assert clip.find(find_floor) == floor
    assert clip.find(find_timbre) == floor


def test_picture_does_not_tell_the_timbre(seen, as_observation):
    """Sound of one floor under the picture of another: each detector answers for its own."""
    (first, one), (second, other) = seen(3), seen(9)
    mixed = as_observation(one.pictures.permute(3, 0, 1, 2) / 127.5 - 1, other.clip.waveform)
    assert first.floor != second.floor
    assert mixed.find(find_floor) == first.floor
    assert mixed.find(find_timbre) == second.floor


def test_timbre_is_heard_through_noise(seen, as_observation):
    scene, clip = seen(9)
    noise = 3e-3 * torch.randn(clip.clip.waveform.shape, generator=generator(0, "test"))
    assert (
        as_observation(torch.zeros(3, 49, 8, 8), clip.clip.waveform + noise).find(find_timbre) == scene.floor
    )


def test_silence_has_no_timbre(as_observation):
    assert as_observation(torch.zeros(3, 49, 8, 8), None).find(find_timbre) is None


def test_nothing_seen_is_nothing_named(as_observation):
    empty = as_observation(torch.full((3, 9, 64, 64), 0.2), None)
    assert empty.find(find_colour) is None
    assert empty.find(find_shape) is None
    assert empty.find(find_size) is None
    assert empty.find(find_direction) is None


@pytest.mark.parametrize("seed", [3, 9])
def test_mirrored_scene_goes_and_sounds_the_other_way(seen, render_scene, as_observation, seed):
    scene, clip = seen(seed)
    mirrored = as_observation(*render_scene(scene.mirrored()))
    opposite = {"left": "right", "right": "left", "down": "down"}
    assert mirrored.find(find_direction) == opposite[clip.find(find_direction)]
    swapped = [1 - pan for pan in mirrored.find(find_pans)]
    assert swapped == pytest.approx(clip.find(find_pans), abs=0.03)


def test_stereo_position_is_that_of_the_impact(seen):
    for seed in (3, 9, 13):
        scene, clip = seen(seed)
        for onset, pan in zip(clip.find(find_onsets), clip.find(find_pans), strict=True):
            event = min(scene.events, key=lambda event: abs(event.time - onset.time))
            assert pan == pytest.approx(scene.pan(event.x), abs=0.05)
