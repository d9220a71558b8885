"""Laws of the world: they hold for every seed, side and time."""

import itertools
import math
import random
from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundstage.data.world.bounce import GROUND, Bounce, is_held_out
from soundstage.data.world.bounce_caption import describe_bounce
from soundstage.data.world.bounce_picture import render_bounces
from soundstage.data.world.bounce_sound import sound_bounces
from soundstage.data.world.limiter import PEAK
from soundstage.data.world.motion import REST_SPEED

SEEDS = st.integers(0, 2**40)
SPLITS = st.sampled_from(("train", "held_out"))


@given(seed=SEEDS, split=SPLITS, aspect=st.floats(0.75, 3.0), time=st.floats(0, 60))
def test_the_object_is_above_the_floor_and_inside_the_edges_at_any_time(seed, split, aspect, time):
    scene = Bounce.from_seed(seed, split, aspect=aspect)
    pose = scene.motion.pose(time)
    assert scene.motion.height(time) >= 0
    assert pose.y + scene.motion.foot * (1 - pose.squash) <= GROUND + 1e-9
    assert scene.radius <= pose.x <= aspect - scene.radius


@given(seed=SEEDS, split=SPLITS)
def test_impacts_obey_energy(seed, split):
    """Each flight goes up and down with one speed, so times and speeds of impacts determine each other."""
    scene = Bounce.from_seed(seed, split)
    motion = scene.motion
    for earlier, later in itertools.pairwise(scene.events):
        assert math.isclose(later.strength, earlier.strength * motion.restitution, rel_tol=1e-9)
        assert math.isclose(later.time - earlier.time, 2 * later.strength / motion.gravity, rel_tol=1e-6)
    assert all(event.strength >= REST_SPEED for event in scene.events)


@given(seed=SEEDS, split=SPLITS)
def test_a_combination_belongs_to_one_split(seed, split):
    scene = Bounce.from_seed(seed, split)
    assert is_held_out(scene.colour, scene.shape, scene.floor) == (split == "held_out")


@given(seed=SEEDS)
def test_mirroring_twice_is_the_identity_of_the_caption(seed):
    scene = Bounce.from_seed(seed)
    assert describe_bounce(scene.mirrored().mirrored(), random.Random(seed)) == describe_bounce(
        scene, random.Random(seed)
    )


@settings(max_examples=15)
@given(seed=SEEDS)
def test_mirroring_commutes_with_drawing_and_sounding(seed):
    scenes = [Bounce.from_seed(seed), Bounce.from_seed(seed).mirrored()]
    scene, mirrored = render_bounces(scenes, num_frames=5, height=32, width=32, frame_rate=Fraction(6))
    assert torch.allclose(scene.flip(-1), mirrored, atol=5e-3)
    sound, swapped = sound_bounces(scenes, duration=0.8, sample_rate=8000)
    assert torch.allclose(sound.flip(0), swapped, atol=1e-5)


@settings(max_examples=15)
@given(seed=SEEDS, height=st.integers(16, 40), wider=st.floats(0.8, 2.0), num_frames=st.integers(1, 4))
def test_every_size_gives_valid_pixels(seed, height, wider, num_frames):
    width = math.ceil(height * wider)
    scene = Bounce.from_seed(seed, aspect=width / height)
    pixels = render_bounces([scene], num_frames=num_frames, height=height, width=width, frame_rate=24.0)
    assert pixels.shape == (1, 3, num_frames, height, width)
    assert pixels.abs().max() <= 1


@settings(max_examples=15)
@given(seed=SEEDS, duration=st.floats(0.05, 2.5), rate=st.sampled_from((8000, 16_000, 24_000)))
def test_sound_is_finite_and_below_the_peak_for_any_length(seed, duration, rate):
    waveform = sound_bounces([Bounce.from_seed(seed)], duration=duration, sample_rate=rate)
    assert waveform.shape == (1, 2, round(duration * rate))
    assert torch.isfinite(waveform).all()
    assert waveform.abs().max() <= PEAK
