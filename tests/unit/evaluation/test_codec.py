import math

import pytest
import torch

from soundstage.evaluation.codec import (
    onset_smear,
    picture_losses,
    pitch_error,
    spectral_error,
    structural_similarity,
)

RATE = 24_000


def blow(start, frequency=440.0, attack=0.0, seconds=0.4):
    """A decaying tone that begins at `start` seconds, its attack a linear ramp."""
    time = torch.arange(round(seconds * RATE)) / RATE - start
    ramp = (time / attack).clamp(0, 1) if attack else (time >= 0).float()
    return ramp * torch.exp(-time.clamp_min(0) / 0.2) * torch.sin(2 * math.pi * frequency * time) * 0.5


def clip(seed=0):
    """Smooth noise with a bright square that moves."""
    source = torch.Generator().manual_seed(seed)
    still = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 6, generator=source), (32, 32), mode="bilinear"
    )
    pixels = still[:, :, None].repeat(1, 1, 5, 1, 1) - 0.5
    for frame in range(5):
        pixels[:, :, frame, 10:16, 4 * frame : 4 * frame + 6] = 0.9
    return pixels


def test_equal_clips_lose_nothing():
    losses = picture_losses(clip(), clip())
    assert losses["ssim"] == [(pytest.approx(1.0),)]
    assert losses["psnr"][0][0] > 100


def test_psnr_of_a_known_error():
    losses = picture_losses(clip(), clip() + 0.02)
    assert losses["psnr"][0][0] == pytest.approx(10 * math.log10(4 / 0.02**2), abs=0.01)


def test_what_moves_is_measured_apart():
    true, made = clip(), clip()
    made[:, :, 2, 10:16, 8:14] = 0.0
    losses = picture_losses(true, made)
    assert losses["psnr_moving"][0][0] < losses["psnr"][0][0] - 5
    assert losses["ssim_moving"][0][0] < losses["ssim"][0][0]


def test_still_clip_says_nothing_about_movement():
    still = clip()[:, :, :1].repeat(1, 1, 5, 1, 1)
    assert picture_losses(still, still)["psnr_moving"] == []


def test_blur_costs_similarity():
    blurred = torch.nn.functional.avg_pool3d(clip(), (1, 5, 5), 1, (0, 2, 2))
    assert float(structural_similarity(clip(), blurred).mean()) < 0.95


@pytest.mark.parametrize("delay", [0.001, 0.003, 0.006])
def test_smear_of_a_delay_is_the_delay(delay):
    smear = onset_smear(blow(0.1), blow(0.1 + delay), 0.1, RATE)
    assert smear == pytest.approx(1000 * delay, abs=0.5)


def test_drawn_out_attack_smears_and_a_sharp_one_does_not():
    sharp = onset_smear(blow(0.1), blow(0.1), 0.1, RATE)
    drawn = onset_smear(blow(0.1), blow(0.094, attack=0.012), 0.1, RATE)
    assert sharp == 0
    assert 2 < drawn < 8


def test_missing_attack_counts_whole_and_silence_not_at_all():
    assert onset_smear(blow(0.1), torch.zeros(9600), 0.1, RATE) == pytest.approx(10)
    assert onset_smear(torch.zeros(9600), blow(0.1), 0.1, RATE) is None


@pytest.mark.parametrize("cents", [-40.0, 0.0, 7.0, 60.0])
def test_pitch_is_measured_to_a_cent(cents):
    other = blow(0.1, 440 * 2 ** (cents / 1200))
    assert pitch_error(blow(0.1), other, 0.1, RATE) == pytest.approx(cents, abs=1)


def test_noise_has_no_pitch():
    noise = 0.3 * torch.randn(9600, generator=torch.Generator().manual_seed(0))
    assert pitch_error(noise, noise, 0.1, RATE) is None


def test_spectra_differ_by_the_logarithm_of_a_gain():
    sound = torch.randn(1, 2, 9600, generator=torch.Generator().manual_seed(0))
    assert spectral_error(sound, sound) == 0
    assert spectral_error(sound, sound * 1.1) == pytest.approx(math.log(1.1), rel=0.05)
