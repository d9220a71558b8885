"""Attention weights: factors say the same as a table, in strips."""

from dataclasses import replace

import pytest
import torch

from soundstage.models.transformer.attention_weights import FactoredAttentionWeights, weights_to_bias
from transformer_samples import inputs, transformer


def appended_tokens(strength: float = 0.4) -> FactoredAttentionWeights:
    """Make the weights of a target of 5 tokens with 3 appended ones that it hears less."""
    groups = torch.tensor([0] * 5 + [1] * 3)
    return FactoredAttentionWeights.from_groups(groups, torch.tensor([[1.0, strength], [strength, 1.0]]))


def test_group_weights_are_the_block_table():
    weights = appended_tokens().weights()
    assert weights.shape == (1, 8, 8)
    assert torch.all(weights[0, :5, :5] == 1)
    assert torch.all(weights[0, 5:, 5:] == 1)
    torch.testing.assert_close(weights[0, :5, 5:], torch.full((5, 3), 0.4))
    torch.testing.assert_close(weights[0, 5:, :5], torch.full((3, 5), 0.4))


def test_factors_can_give_every_token_its_own_strength():
    strength = torch.tensor([0.2, 0.9])
    target = torch.tensor([1.0, 1, 1, 0, 0])
    own = torch.cat([torch.zeros(3), strength])
    appended = 1 - target
    factors = FactoredAttentionWeights(
        rows=torch.stack([target, target, own, appended])[None],
        columns=torch.stack([target, own, target, appended])[None],
    )
    weights = factors.weights()[0]
    torch.testing.assert_close(weights[:3, 3:], strength.expand(3, 2))
    torch.testing.assert_close(weights[3:, :3], strength[:, None].expand(2, 3))
    assert torch.all(weights[:3, :3] == 1)


@pytest.mark.parametrize("tile_size", [1, 3, 8, 100])
def test_strips_join_to_the_whole_bias(tile_size: int):
    factors = appended_tokens(0.0)
    factors = FactoredAttentionWeights(rows=factors.rows, columns=factors.columns, tile_size=tile_size)
    tiled = weights_to_bias(factors, torch.float32)
    strips = [tiled.tile(start, start + tile_size) for start in range(0, 8, tile_size)]
    assert torch.equal(torch.cat(strips, dim=2), weights_to_bias(factors.weights(), torch.float32))


@torch.no_grad()
def test_transformer_hears_factors_as_it_hears_their_table():
    model = transformer("2.3")
    video, audio = inputs(model.config)
    factors = appended_tokens()
    small_tiles = FactoredAttentionWeights(rows=factors.rows, columns=factors.columns, tile_size=3)
    tables = [factors.weights().expand(2, -1, -1), factors, small_tiles]
    results = [model(replace(video, attention_weights=weights), audio).video for weights in tables]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@torch.no_grad()
def test_weight_zero_shuts_tokens_out():
    model = transformer("2.0")
    video, _ = inputs(model.config)
    shut = FactoredAttentionWeights.from_groups(torch.tensor([0] * 5 + [1] * 3), torch.eye(2))
    alone = model(replace(video, attention_weights=shut)).video[:, :5]
    disturbed = video.latents.clone()
    disturbed[:, 5:] += 1
    again = model(replace(video, attention_weights=shut, latents=disturbed)).video[:, :5]
    torch.testing.assert_close(alone, again)


@torch.no_grad()
def test_weight_one_changes_nothing():
    model = transformer("2.0")
    video, _ = inputs(model.config)
    ones = model(replace(video, attention_weights=torch.ones(1, 8, 8)))
    torch.testing.assert_close(ones.video, model(video).video)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bias_stays_finite_in_every_dtype(dtype: torch.dtype):
    bias = weights_to_bias(torch.tensor([[[0.0, 1e-45], [0.5, 1.0]]]), dtype)
    assert bias.dtype == dtype
    assert bias.isfinite().all()
    assert bias[0, 0, 0, 0] == torch.finfo(dtype).min
    torch.testing.assert_close(bias[0, 0, 1].float(), torch.tensor([0.5, 1.0]).log(), atol=3e-3, rtol=0)


def test_no_weights_no_bias():
    assert weights_to_bias(None, torch.float32) is None
