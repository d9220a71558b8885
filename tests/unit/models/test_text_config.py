"""What a checkpoint header says about the text side."""

from dataclasses import replace

import pytest

from soundstage.core.errors import ConfigError
from soundstage.models.text.config import TOKEN_RMS_KEYS, ConnectorConfig, TextConfig

V2 = {
    **TOKEN_RMS_KEYS,
    "connector_num_attention_heads": 32,
    "connector_attention_head_dim": 128,
    "connector_num_layers": 8,
    "connector_apply_gated_attention": True,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "text_encoder_norm_type": "per_token_rms",
}


def test_a_silent_header_is_ltx_2_0_with_gemma_12b():
    config = TextConfig.from_header({})
    assert config.features == "layer_range"
    assert (config.hidden_size, config.num_states, config.num_features) == (3840, 49, 188_160)
    assert config.video == config.audio
    assert (config.video.num_heads, config.video.head_dim, config.video.num_layers) == (30, 128, 2)
    assert (config.video.num_registers, config.video.gated, config.video.max_position) == (128, False, 4096)


def test_the_four_keys_mean_per_token_features():
    config = TextConfig.from_header(V2)
    assert config.features == "token_rms"
    assert (config.video.dim, config.audio.dim) == (4096, 2048)
    assert config.audio.num_layers == config.video.num_layers == 8
    assert config.audio.gated


def test_the_norm_type_may_be_in_capitals():
    assert TextConfig.from_header(V2 | {"text_encoder_norm_type": "PER_TOKEN_RMS"}).features == "token_rms"


@pytest.mark.parametrize("key", TOKEN_RMS_KEYS)
def test_a_missing_key_is_an_error_that_names_it(key):
    header = {k: v for k, v in V2.items() if k != key}
    with pytest.raises(ConfigError, match=f"without {key}"):
        TextConfig.from_header(header)


@pytest.mark.parametrize("key", TOKEN_RMS_KEYS)
def test_another_value_is_an_error_that_names_it(key):
    with pytest.raises(ConfigError, match=f"{key}={not V2[key]}"):
        TextConfig.from_header(V2 | {key: not V2[key]})


def test_an_unknown_norm_type_is_an_error():
    with pytest.raises(ConfigError, match="text_encoder_norm_type=layer_norm"):
        TextConfig.from_header(V2 | {"text_encoder_norm_type": "layer_norm"})


def test_the_text_encoder_tells_its_size():
    tiny = {"hidden_size": 24, "num_hidden_layers": 3}
    assert TextConfig.from_header({}, tiny).num_features == 24 * 4
    assert TextConfig.from_header({}, {"model_type": "gemma3", "text_config": tiny}).num_features == 24 * 4


@pytest.mark.parametrize(
    "header", [{}, V2, V2 | {"connector_ff_bias": False, "connector_norm_output": False}]
)
@pytest.mark.parametrize("text_encoder", [None, {"hidden_size": 96, "num_hidden_layers": 3}])
def test_a_written_header_reads_back_the_same(header, text_encoder):
    config = TextConfig.from_header(header, text_encoder)
    assert TextConfig.from_header(config.to_header()) == config


def test_streams_of_different_width_need_features_of_their_own():
    config = TextConfig.from_header(V2)
    with pytest.raises(ConfigError, match=r"4096 \(video\) and 2048 \(audio\)"):
        replace(config, features="layer_range")


def test_both_connectors_have_the_same_number_of_registers():
    config = TextConfig.from_header(V2)
    with pytest.raises(ConfigError, match="same number of registers"):
        replace(config, audio=replace(config.audio, num_registers=64))


@pytest.mark.parametrize("name", ["num_heads", "head_dim", "num_layers", "num_registers"])
def test_impossible_connector_sizes_are_named(name):
    sizes = {"num_heads": 2, "head_dim": 4, "num_layers": 1, "num_registers": 8} | {name: 0}
    with pytest.raises(ConfigError, match=f"{name}=0"):
        ConnectorConfig(**sizes)


def test_an_odd_head_dim_cannot_be_rotated():
    with pytest.raises(ConfigError, match="head_dim=5 must be even"):
        ConnectorConfig(num_heads=2, head_dim=5, num_layers=1)


def test_a_text_encoder_without_layers_is_an_error():
    with pytest.raises(ConfigError, match="1 hidden states"):
        TextConfig.from_header({}, {"hidden_size": 8, "num_hidden_layers": 0})
