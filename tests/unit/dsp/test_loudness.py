"""Loudness agrees with the calibration points of the standard."""

import math

import pytest
import torch
from torch import Tensor

from soundstage.dsp.loudness import integrated_loudness, k_weighting, peak_level


def tone(frequency: float, rate: int, seconds: float = 1.0) -> Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_a_full_scale_sine_of_997_hz_in_one_channel_reads_minus_3(rate: int) -> None:
    wave = tone(997, rate)
    left = torch.stack((wave, torch.zeros_like(wave)))[None]
    assert integrated_loudness(left, rate).item() == pytest.approx(-3.01, abs=0.05)
    assert integrated_loudness(left[:, :1].expand(-1, 2, -1), rate).item() == pytest.approx(0, abs=0.05)


def test_weighting_matches_the_coefficients_of_the_standard_at_48_khz() -> None:
    z = torch.exp(torch.tensor(-2j * math.pi * 1000 / 48_000, dtype=torch.complex128))
    b, a = (1.53512485958697, -2.69169618940638, 1.19839281085285), (1, -1.69065929318241, 0.73248077421585)
    shelf = (b[0] + b[1] * z + b[2] * z**2) / (a[0] + a[1] * z + a[2] * z**2)
    a = (1, -1.99004745483398, 0.99007225036621)
    high_pass = (1 - 2 * z + z**2) / (a[0] + a[1] * z + a[2] * z**2)
    torch.testing.assert_close(k_weighting(48_000, 48_000)[1000], shelf * high_pass, atol=1e-6, rtol=0)


def test_ten_decibels_less_are_ten_units_less() -> None:
    wave = tone(440, 16_000)[None, None].expand(1, 2, -1)
    difference = integrated_loudness(wave, 16_000) - integrated_loudness(wave * 10**-0.5, 16_000)
    assert difference.item() == pytest.approx(10, abs=1e-3)


def test_pauses_do_not_count() -> None:
    wave = tone(440, 16_000, 2.0)[None, None]
    paused = torch.cat((wave, torch.zeros_like(wave)), dim=-1)
    assert integrated_loudness(paused, 16_000).item() == pytest.approx(
        integrated_loudness(wave, 16_000).item(), abs=0.5
    )


def test_deep_tones_are_quieter_than_high_ones() -> None:
    deep, high = (tone(f, 16_000)[None, None] for f in (30, 3000))
    assert integrated_loudness(deep, 16_000) < integrated_loudness(high, 16_000) - 6


def test_silence_is_infinitely_quiet() -> None:
    silence = torch.zeros(2, 2, 8000)
    assert integrated_loudness(silence, 16_000).tolist() == [-math.inf, -math.inf]
    assert peak_level(silence).tolist() == [-math.inf, -math.inf]


def test_short_clips_and_batches_are_measured_one_by_one() -> None:
    wave = tone(440, 16_000, 0.1)
    batch = torch.stack((wave, wave / 10))[:, None]
    loud, quiet = integrated_loudness(batch, 16_000).tolist()
    assert loud - quiet == pytest.approx(20, abs=1e-3)


def test_peak_level_is_relative_to_full_scale() -> None:
    assert peak_level(torch.tensor([[[0.1, -0.5], [0.2, 0.0]]])).item() == pytest.approx(-6.02, abs=0.01)
