from fractions import Fraction

import pytest

from soundstage.core.errors import RequestError
from soundstage.core.geometry import (
    AudioGeometry,
    VideoGeometry,
    num_audio_samples,
    num_frames_for,
    parse_frame_rate,
)

OFFICIAL = VideoGeometry()
SMALL = VideoGeometry(temporal_factor=8, spatial_factor=8, channels=32, patch_size=2)


def test_official_clip_becomes_the_published_number_of_tokens():
    assert OFFICIAL.latent_shape(121, 512, 768) == (16, 16, 24)
    assert OFFICIAL.num_tokens(121, 512, 768) == 6144


def test_patches_fold_cells_into_tokens():
    assert SMALL.token_size == 16
    assert SMALL.token_channels == 128
    assert SMALL.latent_shape(49, 64, 64) == (7, 8, 8)
    assert SMALL.num_tokens(49, 64, 64) == 112


def test_one_frame_is_one_latent_frame():
    assert OFFICIAL.num_latent_frames(1) == 1


@pytest.mark.parametrize(
    ("num_frames", "near"),
    [(120, "113 and 121"), (0, "nearest is 1$"), (-5, "nearest is 1$"), (2, "1 and 9")],
)
def test_num_frames_error_names_the_nearest_values(num_frames, near):
    with pytest.raises(RequestError, match=rf"num_frames={num_frames} is not 8 k \+ 1; .*{near}"):
        OFFICIAL.check_num_frames(num_frames)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (500, 768, "height=500 is not a multiple of 32; the nearest are 480 and 512"),
        (512, 0, "width=0 is not a multiple of 32; the nearest is 32"),
        (-64, 64, "height=-64 .*; the nearest is 32"),
    ],
)
def test_size_error_names_the_nearest_values(height, width, message):
    with pytest.raises(RequestError, match=message):
        OFFICIAL.check_size(height, width)


def test_two_stage_sizes_are_multiples_of_twice_the_token():
    OFFICIAL.check_size(512, 768, multiple=64)
    with pytest.raises(RequestError, match="height=544 is not a multiple of 64"):
        OFFICIAL.check_size(544, 768, multiple=64)


@pytest.mark.parametrize(
    ("num_frames", "rate", "tokens"),
    [(121, 24, 126), (121, 25, 121), (241, 24, 251), (481, 24, 501), (505, 25, 505), (121, 50, 60)],
)
def test_audio_tokens_round_half_to_even(num_frames, rate, tokens):
    assert AudioGeometry().num_tokens(num_frames, Fraction(rate)) == tokens


def test_audio_decoder_and_vocoder_lengths():
    audio = AudioGeometry()
    assert audio.latents_per_second == 25
    assert audio.token_channels == 128
    assert audio.num_mel_frames(126) == 501
    assert audio.num_samples(126) == 501 * 240
    assert AudioGeometry(output_sample_rate=48_000).num_samples(1) == 480


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (24, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (24.0, Fraction(24)),
        (Fraction(30), Fraction(30)),
    ],
)
def test_frame_rates_are_exact(value, rate):
    assert parse_frame_rate(value) == rate


@pytest.mark.parametrize("value", [0, -24, 241, "fast", "24/0", float("nan"), float("inf")])
def test_impossible_frame_rates_are_refused(value):
    with pytest.raises(RequestError, match="frame_rate="):
        parse_frame_rate(value)


def test_duration_becomes_frames():
    assert num_frames_for(2, 24) == 48
    assert num_frames_for(2.04, Fraction(24)) == 49
    assert num_frames_for(0.001, 24) == 1


@pytest.mark.parametrize("duration", [0, -1, float("nan"), float("inf")])
def test_impossible_durations_are_refused(duration):
    with pytest.raises(RequestError, match="duration="):
        num_frames_for(duration, 24)


def test_sound_track_length_is_exact_for_broadcast_rates():
    assert num_audio_samples(24, Fraction(24000, 1001), 48_000) == 48_048
    assert num_audio_samples(121, Fraction(24), 24_000) == 121_000
