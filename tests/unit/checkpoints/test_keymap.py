"""Sorting tensor names into parts, there and back."""

import pytest
import torch
from safetensors.torch import save_file

import tiny
from golden_cases import GOLDEN
from soundstage.checkpoints import keymap
from soundstage.checkpoints.header import read_header
from soundstage.checkpoints.keymap import locate, official_name, sort_tensors, stream_of

MODEL_PARTS = {
    keymap.TRANSFORMER,
    keymap.CONNECTORS,
    keymap.VIDEO_VAE,
    keymap.AUDIO_VAE,
    keymap.VOCODER,
}


def contents(tmp_path, names, shape=(2, 2)):
    path = tmp_path / "m.safetensors"
    save_file({name: torch.zeros(shape) for name in names}, path)
    return sort_tensors(read_header(path))


@pytest.mark.parametrize("name", ["tiny-ltx2.0", "tiny-ltx2.3"])
def test_a_single_file_is_sorted_completely(name):
    sorted_ = sort_tensors(read_header(GOLDEN / "checkpoints" / f"{name}.safetensors"))
    assert set(sorted_.parts) == MODEL_PARTS
    assert sorted_.unknown == ()


@pytest.mark.parametrize("name", ["tiny-ltx2.0", "tiny-ltx2.3"])
def test_official_names_come_back(name):
    header = read_header(GOLDEN / "checkpoints" / f"{name}.safetensors")
    for part, names in sort_tensors(header).parts.items():
        assert {official_name(part, local): local for local in names} == {v: k for k, v in names.items()}


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
def test_our_modules_bear_the_official_names(generation, tmp_path):
    sorted_ = sort_tensors(read_header(tiny.write_model(tmp_path / "m.safetensors", generation)))
    for part, module in tiny.modules(generation).items():
        assert set(module.state_dict()) == set(sorted_.parts[part])


def test_only_one_vocoder_prefix_is_stripped():
    assert locate("vocoder.vocoder.conv_pre.weight") == (keymap.VOCODER, "vocoder.conv_pre.weight")
    assert locate("vocoder.conv_pre.weight") == (keymap.VOCODER, "conv_pre.weight")


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight",
     "model.language_model.layers.0.mlp.up_proj.weight"],
)  # fmt: skip
def test_the_text_encoder_is_found_under_each_of_its_prefixes(name):
    assert locate(name) == (keymap.TEXT_TOWER, "model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("names", "shape", "part"),
    [
        (["transformer_blocks.0.attn1.to_q.weight", "patchify_proj.weight"], (2, 2), keymap.TRANSFORMER),
        (["encoder.conv_in.conv.weight", "per_channel_statistics.x"], (1, 1, 1, 1, 1), keymap.VIDEO_VAE),
        (["decoder.conv_in.conv.weight"], (1, 1, 1, 1), keymap.AUDIO_VAE),
        (["decoder.det_stages.0.0.norm1.weight"], (2,), keymap.VIDEO_VAE),
        (["conv_pre.weight", "ups.0.weight"], (1, 1, 1), keymap.VOCODER),
        (["bwe_generator.conv_pre.weight", "vocoder.conv_pre.weight"], (1, 1, 1), keymap.VOCODER),
        (["initial_conv.weight", "upsampler.0.weight"], (1, 1), keymap.UPSAMPLER),
        (["layers.0.self_attn.q_proj.weight", "norm.weight"], (1, 1), keymap.TEXT_TOWER),
    ],
)
def test_a_split_file_may_drop_its_prefix(tmp_path, names, shape, part):
    sorted_ = contents(tmp_path, names, shape)
    assert set(sorted_.parts) == {part}
    assert len(sorted_.parts[part]) == len(names)
    if part == keymap.VOCODER and len(names) == 2 and "bwe" in names[0]:
        assert "vocoder.conv_pre.weight" in sorted_.parts[part]


def test_connectors_beside_a_bare_transformer_are_kept_apart(tmp_path):
    names = ["transformer_blocks.0.x", "video_embeddings_connector.learnable_registers"]
    assert set(contents(tmp_path, names).parts) == {keymap.TRANSFORMER, keymap.CONNECTORS}


def test_a_lora_is_told_by_its_pairs(tmp_path):
    assert set(sort_tensors(read_header(tiny.write_lora(tmp_path / "l.safetensors"))).parts) == {keymap.LORA}


def test_the_diffusers_layout_is_recognised(tmp_path):
    assert contents(tmp_path, ["audio_proj_in.weight", "transformer_blocks.0.x"]).is_diffusers


def test_names_of_no_part_are_listed(tmp_path):
    assert contents(tmp_path, ["vae.encoder.x", "optimizer.step"]).unknown == ("optimizer.step",)


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("patchify_proj.weight", "video"),
        ("audio_patchify_proj.weight", "audio"),
        ("transformer_blocks.0.attn1.to_q.weight", "video"),
        ("transformer_blocks.0.audio_attn1.to_q.weight", "audio"),
        ("transformer_blocks.0.audio_to_video_attn.to_q.weight", "cross"),
        ("transformer_blocks.0.scale_shift_table_a2v_ca_audio", "cross"),
        ("av_ca_a2v_gate_adaln_single.linear.bias", "cross"),
        ("transformer_blocks.1.audio_prompt_scale_shift_table", "audio"),
        ("prompt_adaln_single.linear.weight", "video"),
    ],
)
def test_parameters_are_counted_to_their_stream(name, stream):
    assert stream_of(name) == stream


def test_streams_agree_with_the_transformer_itself():
    network = tiny.modules("2.3")[keymap.TRANSFORMER]
    counts = {"video": 0, "audio": 0, "cross": 0}
    for name, parameter in network.named_parameters():
        counts[stream_of(name)] += parameter.numel()
    assert counts == network.parameter_counts()
