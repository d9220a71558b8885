"""What can be measured of clips that show and sound anything."""

import math

import numpy as np
import pytest
import torch

from soundstage.evaluation.detectors.activity import activity_correlation
from soundstage.evaluation.detectors.presence import find_presence
from soundstage.evaluation.metrics.registry import METRICS

RATE = 24_000


def value(name, *clips):
    rows = [row for clip in clips for row in METRICS[name].evidence(clip, {})]
    return METRICS[name].pool(np.array(rows, dtype=np.float64)) if rows else math.nan


def flashing(as_observation, times, delay=0.0, frames=48):
    """A patch that flashes at times, each flash with a click `delay` seconds later."""
    pixels = torch.full((3, frames, 32, 32), -0.5)
    sound = 1e-3 * torch.randn(2, frames * RATE // 24, generator=torch.Generator().manual_seed(0))
    for time in times:
        first = round(time * 24)
        for frame in range(first, min(first + 6, frames)):
            pixels[:, frame, 8:24, 8:24] += 1.2 * 0.6 ** (frame - first)
        start = round((time + delay) * RATE)
        length = min(2400, sound.shape[1] - start)
        tone = torch.sin(torch.arange(length) * 0.3) * torch.exp(-torch.arange(length) / 500)
        sound[:, start : start + length] += 0.5 * tone
    return as_observation(pixels.clamp(-1, 1), sound)


@pytest.mark.parametrize("delay", [-0.12, 0.0, 0.08])
def test_lag_of_sound_behind_movement_is_the_delay(as_observation, delay):
    clips = [
        flashing(as_observation, times, delay) for times in ((0.4, 1.1, 1.5), (0.5, 0.9, 1.4), (0.6, 1.3))
    ]
    base = value("activity_lag", *(flashing(as_observation, t) for t in ((0.4, 1.1, 1.5), (0.5, 0.9, 1.4))))
    assert value("activity_lag", *clips) - base == pytest.approx(1000 * delay, abs=15)
    assert value("activity_correlation", *clips) > 0.5


def test_nothing_correlates_with_silence_or_a_still(as_observation):
    pixels = torch.rand(3, 48, 16, 16, generator=torch.Generator().manual_seed(0))
    assert as_observation(pixels, None).find(activity_correlation) is None
    still = as_observation(torch.zeros(3, 48, 16, 16), torch.randn(2, 2 * RATE))
    assert still.find(activity_correlation) is None


def test_blocks_are_told_from_smooth_pictures(as_observation):
    smooth = torch.linspace(-1, 1, 32).expand(3, 4, 32, 32)
    blocky = torch.nn.functional.interpolate(torch.rand(3, 4, 4, 4), scale_factor=8) * 2 - 1
    assert value("blockiness", as_observation(smooth, None)) == pytest.approx(1, abs=0.3)
    assert value("blockiness", as_observation(blocky + 0.01 * torch.rand(3, 4, 32, 32), None)) > 5


def test_flash_in_the_last_frame_is_found(as_observation):
    pixels = torch.zeros(3, 20, 16, 16)
    assert value("end_flash", as_observation(pixels, None)) == 0
    pixels[:, -1] += 0.2
    assert value("end_flash", as_observation(pixels, None)) == pytest.approx(25.5, abs=1)


def test_steady_motion_does_not_shimmer_and_noise_does(as_observation):
    fade = torch.linspace(-0.5, 0.5, 12)[None, :, None, None].expand(3, 12, 16, 16)
    noisy = 0.05 * torch.randn(3, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    assert value("shimmer", as_observation(fade, None)) < 0.5
    assert value("shimmer", as_observation(noisy, None)) > 2


def test_object_moves_and_a_turning_camera_does_not(as_observation):
    wide = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 12, generator=torch.Generator().manual_seed(1)), (48, 96), mode="bicubic"
    )[0]
    wide = (wide * 1.6 - 0.8).clamp(-1, 1)
    turning = torch.stack([wide[:, :, frame : frame + 48] for frame in range(20)], 1)
    empty = as_observation(turning, None).find(find_presence)
    assert empty.moving < 0.003
    assert empty.loudest < -90
    for frame in range(20):
        turning[:, frame, 10 + frame : 20 + frame, 20:30] = 1.0
    assert as_observation(turning, None).find(find_presence).moving > 0.01
