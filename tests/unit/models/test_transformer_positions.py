"""Where tokens lie in seconds and pixels."""

from fractions import Fraction

import torch

from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.models.transformer.positions import audio_positions, causal_intervals, video_positions

VIDEO, AUDIO = VideoGeometry(), AudioGeometry()


def test_first_latent_step_covers_one_input_step():
    assert causal_intervals(3, 8).tolist() == [[0, 1], [1, 9], [9, 17]]


def test_known_token_of_the_published_geometry():
    positions = video_positions(VIDEO, 3, 2, 4, 24)
    token = positions[0, :, 1 * 8 + 1 * 4 + 2]  # latent frame 1, row 1, column 2
    expected = torch.tensor([[0.0416667, 0.375], [32, 64], [64, 96]])
    torch.testing.assert_close(token, expected)


def test_known_audio_token():
    torch.testing.assert_close(audio_positions(AUDIO, 6)[0, 0, 5], torch.tensor([0.17, 0.21]))


def test_tokens_run_frame_by_frame_then_row_by_row():
    positions = video_positions(VIDEO, 2, 2, 3, 24)[0, :, :, 0]
    assert positions[1].tolist() == [0, 0, 0, 32, 32, 32] * 2
    assert positions[2].tolist() == [0, 32, 64] * 4


def test_time_is_covered_without_gaps():
    for starts, ends in (
        video_positions(VIDEO, 5, 1, 1, 24)[0, 0].unbind(-1),
        audio_positions(AUDIO, 9)[0, 0].unbind(-1),
    ):
        assert starts[0] == 0
        assert torch.equal(starts[1:], ends[:-1])


def test_both_streams_end_together():
    geometry = VideoGeometry()
    for num_frames in (25, 49, 121, 241):
        video = video_positions(geometry, geometry.num_latent_frames(num_frames), 1, 1, 24)
        audio = audio_positions(AUDIO, AUDIO.num_tokens(num_frames, 24))
        assert abs(video[0, 0, -1, 1] - audio[0, 0, -1, 1]) < 0.04 + 0.02  # one audio token, causal offset


def test_patches_are_as_wide_as_their_cells_together():
    geometry = VideoGeometry(spatial_factor=8, patch_size=2)
    positions = video_positions(geometry, 1, 2, 2, 24)
    assert positions[0, 1:, -1].tolist() == [[16, 32], [16, 32]]


def test_frame_rate_may_be_an_exact_fraction():
    exact = video_positions(VIDEO, 2, 1, 1, Fraction(24000, 1001))
    torch.testing.assert_close(exact[0, 0, 1], torch.tensor([1001 / 24000, 9 * 1001 / 24000]))


def test_batch_repeats_the_layout():
    positions = video_positions(VIDEO, 2, 2, 2, 24, batch=3)
    assert positions.shape == (3, 3, 8, 2)
    assert torch.equal(positions[0], positions[2])
    assert audio_positions(AUDIO, 4, batch=3).shape == (3, 1, 4, 2)
