"""Seams between given and made sound, and fades between given and made frames."""

import pytest
import torch

from soundstage.core.geometry import VideoGeometry
from soundstage.pipelines.modes.sounds import continue_sound, fit_length, lead_to, replace_span
from soundstage.pipelines.modes.window import borders, fade_weights, made_latents

RATE = 48_000


def tone(seconds, pitch, level=0.5):
    time = torch.arange(round(seconds * RATE)) / RATE
    return (level * torch.cos(2 * torch.pi * pitch * time)).expand(2, -1).clone()


def test_what_was_made_goes_on_without_a_click():
    given, made = tone(0.5, 200), -tone(1.0, 300)
    joined = continue_sound(given, made, 12_000, RATE)
    assert torch.equal(joined[:, :12_000], given[:, :12_000])
    assert torch.equal(joined[:, 12_240:], made[:, 12_240:])
    assert (joined[:, 12_000] - joined[:, 11_999]).abs().max() < 1e-6
    assert joined.diff(dim=1).abs().max() < 0.05  # the tones' own steepest step, and the bend


def test_what_was_made_meets_what_follows():
    made, given = -tone(1.0, 300), tone(0.5, 200)
    joined = lead_to(made, given, 30_000, RATE)
    assert torch.equal(joined[:, 30_000:], given[:, :18_000])
    assert torch.equal(joined[:, :29_760], made[:, :29_760])
    assert (joined[:, 30_000] - joined[:, 29_999]).abs().max() < 1e-6
    assert joined.diff(dim=1).abs().max() < 0.05


@pytest.mark.parametrize(("start", "end"), [(10_000, 20_000), (0, 20_000), (30_000, 48_000), (100, 140)])
def test_span_is_replaced_inside_its_bounds(start, end):
    source, made = tone(1.0, 200), tone(1.0, 330)
    mixed = replace_span(source, made, start, end, RATE)
    assert torch.equal(mixed[:, :start], source[:, :start])
    assert torch.equal(mixed[:, end:], source[:, end:])
    middle = (start + end) // 2
    assert torch.equal(mixed[:, middle], made[:, middle])
    if end - start > 4 * 1440:  # a shorter span has no room for whole crossfades
        assert mixed.diff(dim=1).abs().max() < 0.1


def test_crossfade_has_equal_power():
    torch.manual_seed(0)
    source, made = torch.randn(2, RATE), torch.randn(2, RATE)
    mixed = replace_span(source, made, 10_000, 30_000, RATE)
    assert mixed[:, 10_000:11_440].std() == pytest.approx(1.0, abs=0.05)


def test_length_is_cut_or_followed_by_silence():
    sound = tone(0.1, 200)
    assert torch.equal(fit_length(sound, 100), sound[:, :100])
    longer = fit_length(sound, 5000)
    assert torch.equal(longer[:, :4800], sound)
    assert longer[:, 4800:].count_nonzero() == 0


def test_frames_fade_inside_of_what_was_made():
    made = torch.zeros(40, dtype=torch.bool)
    made[10:34] = True
    weights = fade_weights(made, 8)
    assert weights[:10].count_nonzero() == 0
    assert weights[34:].count_nonzero() == 0
    assert (weights[10:16].diff() > 0).all()
    assert (weights[28:34].diff() < 0).all()
    assert weights[16:28].eq(1).all()
    assert torch.equal(fade_weights(made, 0), made.float())


def test_frames_made_at_an_end_do_not_fade_there():
    made = torch.zeros(40, dtype=torch.bool)
    made[:16] = made[30:] = True
    weights = fade_weights(made, 8)
    assert weights[0] == weights[-1] == 1
    assert weights[15] < 1
    assert weights[30] < 1


def test_latent_frame_is_made_if_any_of_its_frames_is():
    geometry = VideoGeometry()
    made = torch.zeros(33, dtype=torch.bool)
    made[12:17] = True
    latent = made_latents(made, geometry)
    assert latent.tolist() == [False, False, True, False, False]
    assert borders(made, latent, geometry) == [11]  # 9 to 11 are lost, 17 begins a kept latent frame
    made[17] = True
    assert borders(made, made_latents(made, geometry), geometry) == [11, 18]
