"""The two ways to normalise the hidden states of a text encoder, against plain loops."""

import pytest
import torch

from soundstage.models.text.config import TOKEN_RMS_KEYS, TextConfig
from soundstage.models.text.features import (
    FEATURES,
    normalise_by_layer_range,
    normalise_by_token_rms,
)

TINY = {"hidden_size": 6, "num_hidden_layers": 2}
SIZES = {
    "connector_num_attention_heads": 2,
    "connector_attention_head_dim": 4,
    "connector_num_layers": 1,
    "connector_num_learnable_registers": 4,
}
HEADERS = {
    "layer_range": SIZES,
    "token_rms": SIZES | TOKEN_RMS_KEYS | {"audio_connector_attention_head_dim": 2},
}
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(2, 5, 6, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1


def features_of(kind, seed=0):
    torch.manual_seed(seed)
    return FEATURES[kind](TextConfig.from_header(HEADERS[kind], TINY))


def test_layer_range_takes_statistics_over_the_words_of_each_prompt(states):
    normed = normalise_by_layer_range(states, MASK)
    for item, layer in [(0, 0), (0, 2), (1, 1)]:
        words = states[item, MASK[item].bool(), :, layer]
        expected = 8 * (words - words.mean()) / (words.max() - words.min())
        torch.testing.assert_close(normed[item, MASK[item].bool(), :, layer], expected, atol=1e-4, rtol=1e-4)


def test_token_rms_gives_every_word_of_every_layer_unit_size(states):
    normed = normalise_by_token_rms(states, MASK)
    sizes = normed.square().mean(2).sqrt()
    torch.testing.assert_close(sizes[MASK.bool()], torch.ones(8, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalise", [normalise_by_layer_range, normalise_by_token_rms])
def test_padding_becomes_zero_and_does_not_leak(states, normalise):
    normed = normalise(states, MASK)
    assert (normed[0, :2] == 0).all()
    spoiled = states.clone()
    spoiled[0, :2] = 1e6
    torch.testing.assert_close(normalise(spoiled, MASK), normed, atol=0, rtol=0)


@pytest.mark.parametrize("normalise", [normalise_by_layer_range, normalise_by_token_rms])
def test_statistics_of_bfloat16_states_are_float32(states, normalise):
    coarse = states.bfloat16()
    assert normalise(coarse, MASK).dtype == torch.float32
    torch.testing.assert_close(normalise(coarse, MASK), normalise(coarse.float(), MASK))


def test_the_layer_is_the_fastest_feature_index(states):
    features = features_of("token_rms")
    with torch.no_grad():
        features.video_aggregate_embed.weight.zero_()
        features.video_aggregate_embed.bias.zero_()
        features.video_aggregate_embed.weight[0, 4 * 3 + 1] = 1  # width 4, layer 1
    video = features(states, MASK).video
    expected = normalise_by_token_rms(states, MASK)[:, :, 4, 1] * (8 / 6) ** 0.5
    torch.testing.assert_close(video[:, :, 0], expected)


def test_each_stream_scales_by_its_own_width(states):
    features = features_of("token_rms")
    for layer in (features.video_aggregate_embed, features.audio_aggregate_embed):
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    both = features(states, MASK)
    assert (both.video.shape[-1], both.audio.shape[-1]) == (8, 4)
    torch.testing.assert_close(both.video[..., 0], both.audio[..., 0] * 2**0.5)


def test_layer_range_features_feed_both_streams(states):
    both = features_of("layer_range")(states, MASK)
    assert both.video is both.audio
    assert (both.video[0, :2] == 0).all()


@pytest.mark.parametrize("kind", FEATURES)
def test_features_follow_the_dtype_of_the_weights(kind, states):
    features = features_of(kind).to(torch.bfloat16)
    both = features(states, MASK)
    assert both.video.dtype == both.audio.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", FEATURES)
def test_features_are_differentiable_in_the_states(kind, states):
    states = states.requires_grad_()
    both = features_of(kind)(states, MASK)
    (both.video.square().sum() + both.audio.square().sum()).backward()
    assert states.grad.isfinite().all()
    assert (states.grad[0, :2] == 0).all()
    assert (states.grad[1].abs().sum((1, 2)) > 0).all()
