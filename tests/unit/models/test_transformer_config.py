"""The transformer's configuration: what headers say, what holds when they are silent, and what is refused."""

from dataclasses import replace

import pytest

import tiny
from soundstage.core.errors import ConfigError
from soundstage.models.transformer.config import TransformerConfig

NEWER = {"caption_proj_before_connector": True, "apply_gated_attention": True, "cross_attention_adaln": True}


def test_silent_header_means_the_released_2_0_values():
    config = TransformerConfig.from_header({})
    assert (config.video.dim, config.video.heads, config.video.in_channels) == (4096, 32, 128)
    assert (config.audio.dim, config.audio.heads, config.audio.in_channels) == (2048, 32, 128)
    assert config.num_layers == 48
    assert config.caption_channels == 3840
    assert config.video.max_pos == (20, 2048, 2048)
    assert config.audio.max_pos == config.cross_max_pos == (20,)
    assert config.timestep_scale == config.gate_timestep_scale == 1000
    assert (config.rope_kind, config.rope_precision, config.rope_theta) == ("split", "float64", 10_000)
    assert config.patch_size == 1
    assert config.modulation_rows == 6
    assert not any((config.gated_attention, config.text_modulation, config.keyframe_embedding))
    assert config.video.ff_bias
    assert config.audio.ff_bias


def test_newer_headers_add_gates_and_text_modulation_and_drop_the_caption_projection():
    config = TransformerConfig.from_header({**NEWER, "caption_channels": 3840})
    assert config.gated_attention
    assert config.prompt_adaln
    assert config.modulation_rows == 9
    assert config.caption_channels is None


def test_ff_bias_concerns_video_alone():
    config = TransformerConfig.from_header({**NEWER, "ff_bias": False})
    assert not config.video.ff_bias
    assert config.audio.ff_bias


def test_text_can_be_modulated_by_tables_alone():
    config = TransformerConfig.from_header({**NEWER, "use_prompt_adaln_single": False})
    assert config.text_modulation
    assert not config.prompt_adaln


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5", "embedded"])
def test_written_header_reads_back(generation: str):
    config = TransformerConfig.from_header(tiny.config(generation)["transformer"])
    assert TransformerConfig.from_header(config.to_header()) == config


def test_every_value_survives_the_header():
    config = TransformerConfig.from_header(
        {
            **NEWER,
            "use_prompt_adaln_single": False,
            "rope_type": "interleaved",
            "frequencies_precision": "float32",
            "positional_embedding_max_pos": [10, 64, 64],
            "audio_positional_embedding_max_pos": [30],
            "av_ca_timestep_scale_multiplier": 1,
            "attention_bias": False,
            "audio_ff_bias": False,
            "norm_eps": 1e-5,
            "patch_size": 2,
        }
    )
    assert TransformerConfig.from_header(config.to_header()) == config
    assert config.cross_max_pos == (30,)


def test_unsupported_choice_is_named():
    with pytest.raises(
        ConfigError, match=r"transformer.qk_norm='layer_norm' is not supported; only 'rms_norm'"
    ):
        TransformerConfig.from_header({"qk_norm": "layer_norm"})


def test_keys_of_other_parts_are_ignored():
    assert TransformerConfig.from_header({"connector_num_layers": 8}) == TransformerConfig.from_header({})


def test_text_width_must_fit_the_stream():
    with pytest.raises(ConfigError, match="text width 512 must equal the stream's width 4096"):
        TransformerConfig.from_header({"cross_attention_dim": 512})


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"num_layers": 0}, "num_layers=0 is below 1"),
        ({"prediction": "noise"}, "prediction='noise' is not one of velocity, clean"),
        ({"rope_type": "foo"}, "rope_type='foo' is not one of split, interleaved"),
        ({"frequencies_precision": "half"}, "frequencies_precision='half' is not one of float64, float32"),
        ({"positional_embedding_max_pos": [20]}, "3 entries for video"),
        ({"attention_head_dim": 3, "cross_attention_dim": 96}, "head_dim=3 is odd"),
    ],
)
def test_parts_that_do_not_fit_are_refused(header: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig.from_header(header)


def test_configuration_is_frozen():
    config = TransformerConfig.from_header({})
    with pytest.raises(AttributeError):
        config.num_layers = 3
    assert replace(config, num_layers=3).num_layers == 3
