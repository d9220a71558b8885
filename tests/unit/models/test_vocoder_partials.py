"""Sines found in mel spectra: their pitches and levels, alone, side by side and among many."""

import math

import pytest
import torch

from soundstage.dsp.mel import MelConfig, log_mel
from soundstage.models.vocoder.partials import QUIET, PartialFinder

MEL = MelConfig()
BELL = (
    (140.6, 0.2),
    (281.3, 0.4),
    (337.5, 0.35),
    (421.9, 0.1),
    (562.5, 0.4),
)  # hum, prime, tierce, quint, nominal
DRUM = ((101.8, 0.4), (162.3, 0.13), (218.5, 0.05))


@pytest.fixture(scope="module")
def finder():
    return PartialFinder(MEL)


def spectra(*partials: tuple[float, float]):
    """Measure a second of (hertz, amplitude) sines, away from its ends."""
    times = torch.arange(MEL.sample_rate) / MEL.sample_rate
    sound = sum(
        level * torch.sin(2 * math.pi * hertz * times + index)
        for index, (hertz, level) in enumerate(partials)
    )
    return log_mel(sound.expand(1, 1, -1), MEL)[0, 0, 20:-20].exp()


def assert_found(found, partials, cents: float):
    """Each sine is there in every frame, near its pitch and a quarter of its level."""
    for hertz, level in partials:
        off = torch.where(found.present, (found.pitch / hertz).log2().abs() * 1200, torch.inf)
        nearest = off.min(1)
        assert nearest.values.max() < cents, hertz
        levels = found.amplitude.gather(1, nearest.indices[:, None])
        torch.testing.assert_close(levels, torch.full_like(levels, level), atol=0, rtol=0.25)


@pytest.mark.parametrize("hertz", [90.0, 125.0, 162.5, 301.0, 440.0, 777.7, 1234.5, 2500.0, 4000.0])
def test_one_sine_is_one_sine(finder, hertz):
    found = finder(spectra((hertz, 0.3)))
    assert (found.present.sum(1) == 1).all()
    assert_found(found, [(hertz, 0.3)], cents=4 if hertz > 150 else 15)


def test_two_sines_of_one_peak_are_told_apart(finder):
    pair = (281.3, 0.4), (337.5, 0.34)
    one_peak = spectra(*pair)
    ends = one_peak[:, 3:9]
    assert ((ends[:, 1:-1] > ends[:, :-2]) & (ends[:, 1:-1] > ends[:, 2:])).sum(1).max() == 1
    assert_found(finder(one_peak), pair, cents=20)


@pytest.mark.parametrize(("partials", "cents"), [(BELL, 20), (DRUM, 45)], ids=["bell", "drum"])
def test_partials_of_an_instrument_are_found(finder, partials, cents):
    assert_found(finder(spectra(*partials)), [p for p in partials if p[1] > 0.12], cents)


def test_what_is_found_explains_what_was_given(finder):
    given = spectra(*BELL)
    found = finder(given)
    index = (found.pitch[..., None] - finder.pitches).abs().argmin(-1)
    places = torch.arange(MEL.num_mels).expand(index.shape)
    response = finder.responses[places, index][..., 2:-2]
    made = (torch.where(found.present, found.amplitude, 0.0)[..., None] * response).sum(1)
    assert (made - given).norm() < 0.2 * given.norm()


def test_what_is_quiet_has_no_sines(finder):
    assert not finder(torch.full((3, 64), QUIET)).present.any()
    assert not finder(torch.zeros(3, 64)).present.any()


def test_noise_gives_finite_numbers_in_order(finder):
    torch.manual_seed(0)
    for scale in (1e-2, 1.0, 1e2):
        found = finder(scale * torch.randn(200, 64).exp())
        assert found.present.any(1).all()
        for values in (found.pitch[found.present], found.amplitude[found.present]):
            assert torch.isfinite(values).all()
            assert (values >= 0).all()
        lowest, highest = finder.pitches[:, 0], finder.pitches[:, -1]
        place = found.present.nonzero()[:, 1]
        assert (found.pitch[found.present] >= lowest[place]).all()
        assert (found.pitch[found.present] <= highest[place]).all()


def test_loudness_changes_levels_only(finder):
    quiet, loud = finder(spectra(*BELL)), finder(10 * spectra(*BELL))
    assert torch.equal(quiet.present, loud.present)
    torch.testing.assert_close(loud.pitch, quiet.pitch, rtol=1e-3, atol=0.5)
    torch.testing.assert_close(loud.amplitude, 10 * quiet.amplitude, rtol=1e-2, atol=1e-3)


def test_a_higher_tone_never_leans_lower(finder):
    steps = finder.leanings[list(finder.places)].diff()
    assert (steps >= 0).all()
    assert (steps[20] > 0).all()
