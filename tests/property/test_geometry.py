from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundstage.core.errors import RequestError
from soundstage.core.geometry import (
    AudioGeometry,
    VideoGeometry,
    nearest_allowed,
    num_audio_samples,
    num_frames_for,
    parse_frame_rate,
)

geometries = st.builds(
    VideoGeometry,
    temporal_factor=st.sampled_from([1, 4, 8]),
    spatial_factor=st.sampled_from([8, 16, 32]),
    channels=st.integers(1, 128),
    patch_size=st.sampled_from([1, 2, 4]),
)
rates = st.sampled_from([Fraction(r) for r in (1, 12, 24, 25, 30, 50, 60)] + [Fraction(24000, 1001)])


@given(geometries, st.integers(1, 64))
def test_latent_and_pixel_frames_are_inverse(geometry, latent_frames):
    assert geometry.num_latent_frames(geometry.num_pixel_frames(latent_frames)) == latent_frames


@given(geometries, st.integers(-100, 2000), st.integers(1, 4000), st.integers(1, 4000))
def test_fitting_reaches_the_next_allowed_size(geometry, num_frames, height, width):
    frames = geometry.fit_num_frames(num_frames)
    rows, columns = geometry.fit_size(height, width)
    geometry.check_num_frames(frames)
    geometry.check_size(rows, columns)
    assert 0 <= frames - max(num_frames, 1) < geometry.temporal_factor
    assert 0 <= rows - height < geometry.token_size
    assert 0 <= columns - width < geometry.token_size


@given(geometries, st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_tokens_hold_exactly_the_latent_cells(geometry, latent_frames, rows, columns):
    frames = geometry.num_pixel_frames(latent_frames)
    height, width = rows * geometry.token_size, columns * geometry.token_size
    f, h, w = geometry.latent_shape(frames, height, width)
    cells = f * h * w * geometry.channels
    assert geometry.num_tokens(frames, height, width) * geometry.token_channels == cells


@given(st.integers(-500, 500), st.integers(1, 64), st.booleans())
def test_nearest_values_are_allowed_and_enclose(value, step, odd):
    offset = 1 if odd else 0
    low, high = nearest_allowed(value, step, offset)
    for near in (low, high):
        assert near >= 1
        assert (near - offset) % step == 0
    if value >= (offset or step):
        assert low <= value < high or low == value
        assert high - low == step


@given(geometries, st.integers(-50, 500))
def test_every_frame_count_is_allowed_or_explained(geometry, num_frames):
    allowed = num_frames >= 1 and (num_frames - 1) % geometry.temporal_factor == 0
    if allowed:
        geometry.check_num_frames(num_frames)
    else:
        with pytest.raises(RequestError, match="nearest"):
            geometry.check_num_frames(num_frames)


@given(st.integers(1, 3000), rates, st.sampled_from([16_000, 24_000, 44_100, 48_000]))
def test_sound_and_picture_lengths_differ_by_half_a_sample_at_most(num_frames, rate, sample_rate):
    samples = num_audio_samples(num_frames, rate, sample_rate)
    assert abs(Fraction(samples, sample_rate) - num_frames / rate) <= Fraction(1, 2 * sample_rate)


@given(st.integers(1, 3000), rates)
def test_frames_of_the_duration_of_some_frames_are_these_frames(num_frames, rate):
    assert num_frames_for(float(num_frames / rate), rate) == num_frames


@given(st.integers(9, 3000), rates)
def test_vocoder_covers_the_picture_to_one_token(num_frames, rate):
    audio = AudioGeometry()
    tokens = audio.num_tokens(num_frames, rate)
    seconds = audio.num_samples(max(tokens, 1)) / audio.output_sample_rate
    assert abs(seconds - float(num_frames / rate)) <= 0.051  # half a token of 40 ms and three mel frames


@given(st.fractions(Fraction(1, 10), 240, max_denominator=1001))
def test_frame_rate_written_as_text_reads_back(rate):
    parsed = parse_frame_rate(str(rate))
    assert parsed == rate or abs(parsed - rate) < Fraction(1, 200)
    assert parse_frame_rate(str(parsed)) == parsed
