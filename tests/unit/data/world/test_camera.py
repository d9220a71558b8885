"""A camera that pans: the world scrolls by, and sound follows the picture."""

import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from soundstage.data.world.bounce import Bounce, sample_filmed_bounce
from soundstage.data.world.bounce_picture import render_bounces
from soundstage.data.world.bounce_sound import sound_bounces
from soundstage.data.world.camera import CAMERA_WORDS, PAN_EXTENT, STILL, Camera, world_width
from soundstage.data.world.filming import film
from soundstage.data.world.kind import CLIP_SECONDS, MARGIN_SECONDS

PANNED = [
    bounce
    for seed in range(400)
    if (
        bounce := sample_filmed_bounce(random.Random(seed), split="train", duration=CLIP_SECONDS, aspect=1.0)
    ).camera.turn
    != "still"
]


def test_a_pan_goes_over_its_extent_and_stops():
    right = Camera(turn="right", seconds=2.0)
    assert [right.offset(moment) for moment in (0.0, 1.0, 2.0, 3.0)] == pytest.approx([0, 0.15, 0.3, 0.3])
    assert [right.mirrored().offset(moment) for moment in (0.0, 1.0, 2.0, 3.0)] == pytest.approx(
        [0.3, 0.15, 0, 0]
    )
    assert STILL.offset(1.0) == STILL.extent == 0.0
    assert STILL.mirrored() == STILL
    assert set(CAMERA_WORDS) == {"still", "left", "right"}


def test_whole_pixels_are_cut_out_exactly():
    wide = torch.rand(1, 3, 1, 10, world_width(10, 10)) * 2 - 1
    camera = Camera(turn="right", seconds=3.0)  # one pixel a second
    clip = film(wide, [camera], num_frames=4, width=10, frame_rate=Fraction(1))
    for frame in range(4):
        assert torch.allclose(clip[0, :, frame], wide[0, :, 0, :, frame : frame + 10], atol=1e-5)


def test_between_pixels_a_slope_stays_a_slope():
    slope = torch.linspace(-0.9, 0.9, 43).expand(1, 3, 1, 30, 43)
    clip = film(slope, [Camera(turn="right", seconds=1.0)], num_frames=8, width=30, frame_rate=Fraction(20))
    step = 1.8 / 42
    for frame in range(8):
        expected = -0.9 + step * (torch.arange(1, 29) + frame / 20 * PAN_EXTENT * 30)
        assert torch.allclose(clip[0, 0, frame, 3, 1:29], expected, atol=1e-4)


def test_some_bounces_are_panned_and_stay_in_the_picture():
    assert 20 < len(PANNED) < 80
    for bounce in PANNED:
        for step in range(50):
            moment = step / 49 * (CLIP_SECONDS + MARGIN_SECONDS)
            x = bounce.motion.x(moment) - bounce.camera.offset(moment)
            assert bounce.radius * 0.99 <= x <= bounce.aspect - bounce.radius * 0.99
    assert {bounce.camera.turn for bounce in PANNED} == {"left", "right"}


def test_drift_and_pan_go_the_same_way():
    for bounce in PANNED:
        assert bounce.direction in ("down", bounce.camera.turn)


def test_the_object_is_seen_where_the_event_says():
    """The centroid of a red ball in the frame of an impact lies at the event's x."""
    for bounce in PANNED[:6]:
        red = replace(bounce, colour="red", shape="ball", background="mint", floor="wood")
        red = replace(red, motion=replace(red.motion, foot=red.radius))
        event = red.events[0]
        clip = render_bounces([red], num_frames=2, height=64, width=64, frame_rate=1 / event.time)[0]
        shown = (clip[0, 1] > 0.2) & (clip[1, 1] < -0.4) & (clip[2, 1] < -0.4)
        centre = (shown.float().sum(0) * (torch.arange(64) + 0.5)).sum() / shown.sum() / 64
        assert float(centre) == pytest.approx(event.x, abs=0.012)


def test_sound_follows_the_picture():
    for bounce in PANNED[:6]:
        event = bounce.events[0]
        start = round(event.time * 24_000)
        left, right = sound_bounces([bounce], duration=event.time + 0.1, sample_rate=24_000)[0, :, start:]
        ratio = torch.atan2(right.square().sum().sqrt(), left.square().sum().sqrt()) / (torch.pi / 2)
        assert float(ratio) == pytest.approx(event.x, abs=0.01)


def test_the_background_scrolls_the_other_way():
    still = replace(Bounce.from_seed(0), background="night", floor="wood")
    panned = replace(still, camera=Camera(turn="right", seconds=1.0))
    first, last = render_bounces([panned], num_frames=2, height=50, width=50, frame_rate=1)[0].unbind(1)
    moved = round(PAN_EXTENT * 50)
    assert torch.allclose(first[:, :12, moved + 2 : -2], last[:, :12, 2 : -moved - 2], atol=0.03)
