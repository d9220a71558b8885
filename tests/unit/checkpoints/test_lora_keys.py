"""Every way of spelling a LoRA's keys leads to the official layer."""

import pytest

from soundstage.checkpoints.layer_table import all_names
from soundstage.checkpoints.lora_keys import (
    DIFFUSERS_NAMES,
    LoraKey,
    diffusers_layer,
    is_text_side,
    official_layer,
    parse_key,
    spellings_of,
)

TO_Q = "transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def spellings():
    return spellings_of(all_names())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (f"diffusion_model.{TO_Q}.lora_A.weight", (TO_Q, "down", "official")),
        (f"diffusion_model.{TO_Q}.lora_B.weight", (TO_Q, "up", "official")),
        (f"model.diffusion_model.{TO_Q}.lora_B.weight", (TO_Q, "up", "official")),
        (f"{TO_Q}.lora_A.weight", (TO_Q, "down", "official")),
        (f"diffusion_model.{TO_Q}.lora_A.default.weight", (TO_Q, "down", "official")),
        (f"diffusion_model.{TO_Q}.lora_down.weight", (TO_Q, "down", "ComfyUI")),
        (f"diffusion_model.{TO_Q}.lora_up.weight", (TO_Q, "up", "ComfyUI")),
        (f"diffusion_model.{TO_Q}.alpha", (TO_Q, "alpha", "official")),
        (f"diffusion_model.{TO_Q}.dora_scale", (TO_Q, "magnitude", "official")),
        (f"transformer.{TO_Q}.lora_A.weight", (TO_Q, "down", "diffusers")),
        (f"transformer.{TO_Q}.lora.down.weight", (TO_Q, "down", "diffusers")),
        (f"transformer.{TO_Q}.lora_magnitude_vector", (TO_Q, "magnitude", "diffusers")),
        ("transformer.proj_in.lora_B.weight", ("patchify_proj", "up", "diffusers")),
        (
            "diffusion_model.audio_time_embed.linear.lora_A.weight",
            ("audio_adaln_single.linear", "down", "diffusers"),
        ),
        (f"base_model.model.{TO_Q}.lora_A.default.weight", (TO_Q, "down", "PEFT")),
        (f"base_model.model.{TO_Q}.lora_magnitude_vector.style.weight", (TO_Q, "magnitude", "PEFT")),
        ("lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight", (TO_Q, "down", "kohya")),
        (
            "lora_unet_transformer_blocks_47_ff_net_0_proj.alpha",
            ("transformer_blocks.47.ff.net.0.proj", "alpha", "kohya"),
        ),
        (
            "lora_unet_transformer_blocks_3_audio_attn1_to_out_0.lora_up.weight",
            ("transformer_blocks.3.audio_attn1.to_out.0", "up", "kohya"),
        ),
        (
            "lora_unet_time_embed_emb_timestep_embedder_linear_1.lora_up.weight",
            ("adaln_single.emb.timestep_embedder.linear_1", "up", "kohya"),
        ),
        ("lora_unet_no_such_layer.lora_up.weight", ("no_such_layer", "up", "kohya")),
    ],
)
def test_key_is_understood(key, expected, spellings):
    assert parse_key(key, spellings) == LoraKey(*expected)


@pytest.mark.parametrize("key", ["diffusion_model.x.weight", "lora_A", f"{TO_Q}.lora_C.weight", "alpha"])
def test_other_keys_are_not(key, spellings):
    assert parse_key(key, spellings) is None


def test_every_layer_is_found_without_its_dots_in_both_namings(spellings):
    for name in all_names():
        for spelled in (name, diffusers_layer(name)):
            assert spellings[spelled.replace(".", "_")] == name


def test_diffusers_names_lead_there_and_back():
    for name in all_names():
        assert official_layer(diffusers_layer(name)) == name
        assert official_layer(name) == name
    assert len(set(DIFFUSERS_NAMES.values())) == len(DIFFUSERS_NAMES)


@pytest.mark.parametrize(
    "key",
    [
        "diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.lora_A.weight",
        "text_embedding_projection.aggregate_embed.lora_A.weight",
        "connectors.text_proj_in.lora_A.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
        "lora_unet_audio_embeddings_connector_transformer_1d_blocks_0_attn1_to_q.alpha",
    ],
)
def test_text_side_is_told_apart(key):
    assert is_text_side(key)
    assert not is_text_side(f"diffusion_model.{TO_Q}.lora_A.weight")
