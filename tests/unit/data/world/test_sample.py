"""The world joins picture, sound, caption and ground truth of one seed."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from soundstage.core.errors import ConfigError
from soundstage.data.world.bounce import is_held_out
from soundstage.data.world.sample import World, WorldConfig
from soundstage.data.world.scene import Scene

SMALL = WorldConfig(num_frames=9, height=32, width=32, tail=0.1, kinds=("bounce",))


def test_a_batch_holds_everything_of_its_seeds():
    batch = World(SMALL).batch([4, 5, 6])
    assert batch.pixels.shape == (3, 3, 9, 32, 32)
    assert batch.waveform.shape == (3, 2, round((9 / 24 + 0.1) * 24_000))
    assert len(batch.captions) == len(batch.scenes) == 3
    assert batch.scenes[1].subject.colour in batch.captions[1]


def test_defaults_are_the_training_clip():
    config = WorldConfig()
    assert (config.num_frames, config.height, config.width) == (49, 64, 64)
    assert config.duration == pytest.approx(49 / 24)
    assert World(config).scene(3) == Scene.from_seed(3)


def test_a_seed_gives_the_same_clip_in_any_batch():
    world = World(SMALL)
    one, many = world.batch([5]), world.batch([9, 5, 2])
    assert torch.allclose(one.pixels[0], many.pixels[1], atol=1e-5)
    assert torch.allclose(one.waveform[0], many.waveform[1], atol=1e-5)
    assert one.captions[0] == many.captions[1]
    assert one.scenes[0] == many.scenes[1]


def test_splits_share_neither_combinations_nor_captions_of_a_seed():
    train, held_out = World(SMALL), World(replace(SMALL, split="held_out"))
    for seed in range(30):
        scene = held_out.scene(seed).subject
        assert is_held_out(scene.colour, scene.shape, scene.floor)
        assert scene.motion != train.scene(seed).subject.motion


def test_picture_and_sound_can_be_made_alone():
    world = World(SMALL)
    scenes = [world.scene(seed) for seed in (1, 2)]
    batch = world.batch([1, 2])
    assert torch.equal(world.pixels(scenes), batch.pixels)
    assert torch.equal(world.waveform(scenes), batch.waveform)
    assert world.caption(2) == batch.captions[1]


def test_the_shape_of_the_picture_reaches_the_scene():
    world = World(replace(SMALL, width=64, frame_rate=Fraction(12)))
    assert world.scene(0).aspect == 2.0
    assert world.batch([0]).pixels.shape == (1, 3, 9, 32, 64)


@pytest.mark.parametrize("name", ["num_frames", "height", "width", "frame_rate", "sample_rate"])
def test_a_size_of_zero_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=0 should be positive"):
        replace(SMALL, **{name: Fraction(0) if name == "frame_rate" else 0})


def test_a_negative_tail_is_refused():
    with pytest.raises(ConfigError, match="tail"):
        replace(SMALL, tail=-0.1)


def test_a_picture_too_small_or_too_narrow_is_refused():
    with pytest.raises(ConfigError, match="16x16 or more"):
        replace(SMALL, height=8, width=8)
    with pytest.raises(ConfigError, match="use 24 or more"):
        replace(SMALL, width=20)


@pytest.mark.gpu
def test_another_device_makes_the_same_clips():
    world = World(SMALL)
    here, there = world.batch([1, 2, 3]), world.batch([1, 2, 3], device="cuda")
    assert there.pixels.device.type == there.waveform.device.type == "cuda"
    # Rounding moves a soft edge by a fraction of a level; the planks' tone is a hash of a sine.
    assert (here.pixels - there.pixels.cpu()).abs().mean() < 1e-3
    assert torch.allclose(here.waveform, there.waveform.cpu(), atol=1e-3)
