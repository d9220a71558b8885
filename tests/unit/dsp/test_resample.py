"""Resampling keeps what both rates can hold, removes the rest, and keeps time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.dsp.resample import resample


def tone(frequency: float, rate: int, samples: int) -> Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(samples, dtype=torch.float64) / rate)[None, None]


@given(
    samples=st.integers(1, 200),
    source=st.sampled_from([8000, 16_000, 22_050, 24_000, 44_100, 48_000]),
    target=st.sampled_from([16_000, 24_000, 48_000]),
)
def test_the_length_is_the_ceiling_of_the_ratio(samples: int, source: int, target: int) -> None:
    result = resample(torch.zeros(1, 2, samples), source, target)
    assert result.shape == (1, 2, math.ceil(samples * target / source))


@pytest.mark.parametrize(("source", "target"), [(44_100, 16_000), (24_000, 16_000), (16_000, 48_000)])
def test_a_tone_in_the_common_band_keeps_pitch_phase_and_level(source: int, target: int) -> None:
    result = resample(tone(1000, source, source // 10), source, target)
    expected = tone(1000, target, result.shape[-1])
    torch.testing.assert_close(result[..., 50:-50], expected[..., 50:-50], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("source", "target"), [(47_999, 16_000), (44_056, 48_000)])
def test_rates_with_nothing_in_common_are_resampled_as_well(source: int, target: int) -> None:
    result = resample(tone(1000, source, source // 10), source, target)
    expected = tone(1000, target, result.shape[-1])
    assert result.shape[-1] == math.ceil(source // 10 * target / source)
    torch.testing.assert_close(result[..., 50:-50], expected[..., 50:-50], atol=2e-3, rtol=0)


def test_both_ways_of_computing_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.randn(2, 2, 3000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stored = resample(waveform, 44_100, 48_000)
    monkeypatch.setattr("soundstage.dsp.resample._MOST_TAPS", 0)
    torch.testing.assert_close(resample(waveform, 44_100, 48_000), stored, atol=1e-12, rtol=0)


def test_what_the_lower_rate_cannot_hold_is_removed() -> None:
    result = resample(tone(11_000, 24_000, 2400), 24_000, 16_000)
    assert result[..., 50:-50].abs().max() < 0.01


def test_equal_rates_change_nothing() -> None:
    waveform = torch.randn(1, 2, 10)
    assert resample(waveform, 16_000, 16_000) is waveform


def test_channels_and_batch_items_stay_apart() -> None:
    waveform = torch.randn(2, 3, 60)
    together = resample(waveform, 3, 2)
    for b in range(2):
        for c in range(3):
            alone = resample(waveform[b : b + 1, c : c + 1], 3, 2)
            torch.testing.assert_close(together[b, c], alone[0, 0])


def test_gradients_flow_even_after_inference_mode_filled_the_cache() -> None:
    with torch.inference_mode():
        resample(torch.zeros(1, 1, 30), 7, 5)
    waveform = torch.randn(1, 1, 30, requires_grad=True)
    resample(waveform, 7, 5).sum().backward()
    assert waveform.grad.abs().sum() > 0


def test_half_precision_is_raised_to_float32() -> None:
    assert resample(torch.zeros(1, 1, 30, dtype=torch.bfloat16), 3, 2).dtype == torch.float32


@pytest.mark.parametrize("rates", [(0, 16_000), (16_000, -1)])
def test_rates_must_be_positive(rates: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="must be positive"):
        resample(torch.zeros(1, 1, 30), *rates)
