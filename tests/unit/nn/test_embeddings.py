"""Noise levels as sinusoids."""

import torch

from soundstage.nn.embeddings import TimestepEmbedder, position_waves, sinusoidal_embedding


def test_cosines_come_first():
    embedding = sinusoidal_embedding(torch.tensor([725.0]), 256)[0]
    expected_cos = torch.tensor([-0.7597, -0.7125, 0.8802])  # of the reference
    expected_sin = torch.tensor([0.6502, 0.7016, -0.4745])
    torch.testing.assert_close(embedding[:3], expected_cos, atol=2e-4, rtol=0)
    torch.testing.assert_close(embedding[128:131], expected_sin, atol=2e-4, rtol=0)


def test_sinusoids_are_float32_for_any_input():
    t = torch.tensor([725.0])
    low = sinusoidal_embedding(t.bfloat16(), 8)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, sinusoidal_embedding(t.bfloat16().float(), 8))


def test_scalars_keep_their_leading_shape():
    assert sinusoidal_embedding(torch.rand(2, 3), 8).shape == (2, 3, 8)


def test_embedder_runs_in_the_dtype_asked_for():
    embedder = TimestepEmbedder(12).bfloat16()
    out = embedder(torch.tensor([1000.0, 0.0]), torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert out.shape == (2, 12)


def test_embedder_uses_official_names():
    assert set(TimestepEmbedder(4).state_dict()) == {
        "linear_1.weight",
        "linear_1.bias",
        "linear_2.weight",
        "linear_2.bias",
    }


def test_positions_turn_by_octaves_on_each_axis():
    positions = torch.tensor([[[0.0, 4.0], [0.0, 32.0]]])  # seconds and pixels of two tokens
    waves = position_waves(positions, (4.0, 128.0), octaves=2)
    assert waves.shape == (1, 2, 8)
    torch.testing.assert_close(waves[0, 0], torch.tensor([1.0] * 4 + [0.0] * 4))
    root = 0.5**0.5  # a quarter of the extent is an eighth of a turn
    expected = torch.tensor([-1.0, 1.0, root, 0.0, 0.0, 0.0, root, 1.0])
    torch.testing.assert_close(waves[0, 1], expected, atol=1e-6, rtol=0)
