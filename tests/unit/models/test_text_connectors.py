"""Registers, order of words, lengths, and that the connectors can be built anywhere and trained."""

from dataclasses import replace

import pytest
import torch

from soundstage.core.errors import ConfigError
from soundstage.models.text.config import TOKEN_RMS_KEYS, ConnectorConfig, TextConfig
from soundstage.models.text.connectors import EmbeddingsConnector, TextConnectors

CONFIG = ConnectorConfig(num_heads=2, head_dim=4, num_layers=2, num_registers=4, gated=True)


@pytest.fixture
def connector() -> EmbeddingsConnector:
    torch.manual_seed(0)
    return EmbeddingsConnector(CONFIG)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))


def text_connectors() -> TextConnectors:
    torch.manual_seed(0)
    header = {
        **TOKEN_RMS_KEYS,
        "connector_num_attention_heads": 2,
        "connector_attention_head_dim": 8,
        "connector_num_layers": 1,
        "connector_num_learnable_registers": 4,
        "audio_connector_attention_head_dim": 4,
    }
    text_encoder = {"hidden_size": 6, "num_hidden_layers": 2}
    return TextConnectors(TextConfig.from_header(header, text_encoder))


def test_words_move_to_the_front_in_order_and_registers_follow_by_position(connector, features):
    mask = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    filled = connector.fill_with_registers(features, mask, 8)
    torch.testing.assert_close(filled[0, :3], features[0, 5:])
    for position in range(3, 8):
        torch.testing.assert_close(filled[0, position], connector.learnable_registers[position % 4])
    torch.testing.assert_close(filled[1], features[1])


def test_padding_may_be_anywhere(connector, features):
    left = torch.cat([torch.zeros(2, 3, 8), features[:, :5]], dim=1)
    right = torch.cat([features[:, :5], torch.ones(2, 3, 8)], dim=1)
    on_the_left = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]] * 2)
    torch.testing.assert_close(connector(left, on_the_left), connector(right, on_the_left.flip(1)))


def test_left_out_padding_gives_the_same_context(connector, features):
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]] * 2)
    torch.testing.assert_close(
        connector(features[:, 3:], mask[:, 3:], length=8), connector(features, mask), atol=1e-6, rtol=1e-6
    )


def test_one_prompt_does_not_see_another(connector, features):
    mask = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]])
    together = connector(features, mask)
    for i in range(2):
        alone = connector(features[i : i + 1], mask[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=1e-6)


def test_without_words_the_context_is_made_of_registers(connector, features):
    none = torch.zeros(2, 8, dtype=torch.bool)
    context = connector(features, none)
    assert context.isfinite().all()
    torch.testing.assert_close(context[0], context[1])


def test_words_attend_in_both_directions(connector, features):
    mask = torch.ones(2, 8, dtype=torch.int64)
    changed = features.clone()
    changed[:, 7] += 1
    moved = (connector(changed, mask) - connector(features, mask)).abs().amax(-1)
    assert (moved[:, 0] > 1e-6).all()


def test_the_order_of_words_matters(connector, features):
    mask = torch.ones(2, 8, dtype=torch.int64)
    swapped = connector(features.flip(1), mask).flip(1)
    assert (swapped - connector(features, mask)).abs().max() > 1e-3


def test_the_output_is_normed_unless_the_header_says_no(connector, features):
    mask = torch.ones(2, 8, dtype=torch.int64)
    size = connector(features, mask).square().mean(-1)
    torch.testing.assert_close(size, torch.ones(2, 8), atol=1e-4, rtol=0)
    connector.config = replace(CONFIG, norm_output=False)
    assert (connector(features, mask).square().mean(-1) - 1).abs().max() > 0.1


@pytest.mark.parametrize("length", [6, 4])
def test_a_bad_length_is_an_error_that_names_the_right_one(connector, features, length):
    with pytest.raises(ConfigError, match=f"length {length} .* 4 registers .* 8 tokens; use 8"):
        connector(features, torch.ones(2, 8, dtype=torch.int64), length=length)


def test_registers_start_with_the_spread_of_the_header():
    torch.manual_seed(0)
    wide = EmbeddingsConnector(replace(CONFIG, num_registers=512, registers_std=0.25))
    assert wide.learnable_registers.std().item() == pytest.approx(0.25, rel=0.05)


def test_activations_follow_the_weights(connector, features):
    mask = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    exact = connector(features, mask)
    coarse = connector.to(torch.bfloat16)(features.bfloat16(), mask)
    assert coarse.dtype == torch.bfloat16
    assert (coarse.float() - exact).abs().max() < 0.1  # outputs have unit size; bf16 keeps 8 bits


def test_the_state_dict_has_the_official_names():
    names = text_connectors().state_dict().keys()
    assert {name.split(".")[0] for name in names} == {
        "video_embeddings_connector",
        "audio_embeddings_connector",
        "text_embedding_projection",
    }
    assert "audio_embeddings_connector.transformer_1d_blocks.0.attn1.to_out.0.weight" in names
    assert "video_embeddings_connector.transformer_1d_blocks.0.ff.net.0.proj.bias" in names
    assert "text_embedding_projection.audio_aggregate_embed.bias" in names


def test_built_on_meta_and_filled_it_computes_the_same():
    model = text_connectors()
    with torch.device("meta"):
        empty = TextConnectors(model.config)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(model.state_dict(), assign=True)
    states, mask = torch.randn(1, 4, 6, 3), torch.tensor([[0, 1, 1, 1]])
    torch.testing.assert_close(empty(states, mask).video, model(states, mask).video)


def test_every_weight_learns():
    model = text_connectors()
    contexts = model(torch.randn(2, 8, 6, 3), torch.tensor([[0] * 4 + [1] * 4, [0] * 2 + [1] * 6]))
    assert contexts.video.shape == (2, 8, 16)
    assert contexts.audio.shape == (2, 8, 8)
    target = torch.randn(2, 8, 16)
    loss = (contexts.video - target).square().mean() + (contexts.audio - target[..., :8]).square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
