"""Opening models of one file and of several: what belongs together, and what does not."""

import pytest
import torch

import tiny
from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import CheckpointError

MODEL_PARTS = {
    keymap.TRANSFORMER,
    keymap.CONNECTORS,
    keymap.VIDEO_VAE,
    keymap.AUDIO_VAE,
    keymap.VOCODER,
}


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
def test_a_single_file_tells_its_generation_and_parts(generation, tmp_path):
    checkpoint = open_checkpoint(tiny.write_model(tmp_path / "m.safetensors", generation))
    assert checkpoint.generation.name == generation
    assert set(checkpoint.parts) == MODEL_PARTS
    assert checkpoint.unknown == ()
    assert checkpoint.section("vae")["latent_channels"] == 4
    assert checkpoint.num_bytes < (tmp_path / "m.safetensors").stat().st_size


@pytest.mark.parametrize("bare_vae", [True, False])
def test_split_files_make_one_model(tmp_path, bare_vae):
    tiny.write_pack(tmp_path, bare_vae=bare_vae)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.generation.name == "2.5"
    assert set(checkpoint.parts) == MODEL_PARTS
    whole = open_checkpoint(tiny.write_model(tmp_path / "whole.safetensors", "2.5"))
    for part in MODEL_PARTS:
        assert checkpoint.parts[part].keys() == whole.parts[part].keys()
    assert {"transformer", "vae", "audio_vae", "vocoder"} <= set(checkpoint.config)


def test_loras_and_upsamplers_beside_a_model_are_left_alone(tmp_path):
    tiny.write_model(tmp_path / "m.safetensors", "2.3")
    tiny.write_lora(tmp_path / "style.safetensors")
    write_safetensors(tmp_path / "up.safetensors", {"initial_conv.weight": torch.zeros(1)}, {})
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.parts) == MODEL_PARTS
    assert len(checkpoint.headers) == 1


def test_two_models_in_one_directory_are_refused(tmp_path):
    tiny.write_model(tmp_path / "dev.safetensors", "2.3")
    tiny.write_model(tmp_path / "distilled.safetensors", "2.3")
    with pytest.raises(CheckpointError, match=r"both hold .* tensors.*give the one file you mean"):
        open_checkpoint(tmp_path)


def test_parts_of_two_generations_are_refused(tmp_path):
    new, old = tiny.modules("2.3"), tiny.modules("2.0")
    write_safetensors(
        tmp_path / "transformer.safetensors",
        tiny.official(keymap.TRANSFORMER, new[keymap.TRANSFORMER].state_dict()),
        {"model_version": "2.3.0"},
    )
    write_safetensors(
        tmp_path / "vae.safetensors",
        tiny.official(keymap.VIDEO_VAE, old[keymap.VIDEO_VAE].state_dict()),
        {"model_version": "2.0.0"},
    )
    with pytest.raises(CheckpointError, match=r"do not belong together.*LTX-2\.3.*LTX-2\.0.*latents differ"):
        open_checkpoint(tmp_path)


def test_the_diffusion_decoder_gives_way_to_the_convolutional_one(tmp_path):
    tiny.write_pack(tmp_path)
    write_safetensors(
        tmp_path / "vae" / "ltx-2.5-video-vae-bf16.safetensors",
        {"decoder.det_stages.0.0.norm1.weight": torch.zeros(1)},
        {"model_version": "2.5.0"},
    )
    assert set(open_checkpoint(tmp_path).parts) == MODEL_PARTS


def test_a_missing_part_is_told_with_what_is_there(tmp_path):
    checkpoint = open_checkpoint(tiny.write_lora(tmp_path / "style.safetensors"))
    with pytest.raises(CheckpointError, match=r"style.safetensors holds no transformer; it holds: LoRA"):
        checkpoint.part(keymap.TRANSFORMER)


def test_a_missing_configuration_is_told(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"vae.encoder.x": torch.zeros(1)}, {"model_version": "2.3.0"})
    with pytest.raises(CheckpointError, match="no 'vae' section in its metadata key 'config'"):
        open_checkpoint(path).section("vae")


def test_the_diffusers_layout_is_refused_by_name(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"audio_proj_in.weight": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="diffusers layout; soundstage reads the official single files"):
        open_checkpoint(path)


def test_an_empty_directory_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors files"):
        open_checkpoint(tmp_path)


def test_a_version_that_cannot_be_read_names_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"vae.encoder.x": torch.zeros(1)}, {"model_version": "dev"})
    with pytest.raises(CheckpointError, match=r"m\.safetensors: model_version='dev'"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "variant"),
    [("ltx-2.3-22b-dev", "dev"), ("ltx-2.3-22b-distilled-1.1", "distilled"), ("x", "dev")],
)
def test_the_file_name_tells_a_distilled_model(tmp_path, name, variant):
    assert open_checkpoint(tiny.write_model(tmp_path / f"{name}.safetensors", "2.3")).variant == variant


def test_unused_statistics_of_2_0_are_allowed_by_name(tmp_path):
    checkpoint = open_checkpoint(tiny.write_model(tmp_path / "m.safetensors", "2.0"))
    assert "per_channel_statistics.channel" in checkpoint.allowed_unused(keymap.VIDEO_VAE)
    assert checkpoint.allowed_unused(keymap.VOCODER) == frozenset()
    assert checkpoint.allowed_missing(keymap.VIDEO_VAE) == frozenset()
