"""Picture and sound of the world tell the same times, found in pixels and samples alone."""

from dataclasses import replace

import pytest
import torch

from soundstage.data.world.bounce import GROUND, SHAPES, Bounce
from soundstage.data.world.bounce_picture import render_bounces
from soundstage.data.world.bounce_sound import sound_bounces

FRAME_RATE = 120
RATE = 24_000
SECONDS = 1.5


def wooden(seed):
    """A red ball on wood before a pale wall: easy to find in the picture, short in the sound."""
    scene = Bounce.from_seed(seed)
    motion = replace(scene.motion, foot=scene.radius * SHAPES["ball"])
    return replace(scene, colour="red", shape="ball", floor="wood", background="mint", motion=motion)


def seen(scene):
    """Times at which the lowest red pixel arrives at the line of contact."""
    clip = render_bounces(
        [scene], num_frames=round(SECONDS * FRAME_RATE), height=64, width=64, frame_rate=FRAME_RATE
    )[0]
    red = (clip[0] > 0.2) & (clip[1] < -0.4) & (clip[2] < -0.4)
    rows = torch.arange(64)
    lowest = torch.where(red.any(-1), rows, -1).amax(-1)  # (frames,)
    touching = lowest >= round(GROUND * 64) - 2  # the rim itself is too dark to count as red
    arrivals = (touching & ~touching.roll(1)).nonzero().flatten()
    return [int(frame) / FRAME_RATE for frame in arrivals if frame > 0]


def heard(scene):
    """Times at which the level rises at once out of what has decayed."""
    mono = sound_bounces([scene], duration=SECONDS, sample_rate=RATE)[0].abs().amax(0)
    level = mono.unfold(0, 48, 24).amax(-1)  # 2 ms windows, 1 ms apart
    before = torch.nn.functional.pad(level, (4, 0))[: len(level)].clamp_min(0.004)
    rises = level > 2.5 * before
    return [int(index) / 1000 for index in (rises & ~rises.roll(1)).nonzero().flatten()]


@pytest.mark.parametrize("seed", range(6))
def test_every_impact_that_is_seen_is_heard_then(seed):
    scene = wooden(seed)
    events = [event for event in scene.events_before(SECONDS - 0.05) if event.strength > 0.7]
    pictures, sounds = seen(scene), heard(scene)
    assert events
    for event in events:
        # The last two pixels of the fall take up to 2 / 64 / 0.7 = 45 ms.
        assert min(abs(event.time - 0.02 - time) for time in pictures) < 0.03
        assert min(abs(event.time - time) for time in sounds) < 0.004
