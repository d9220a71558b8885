"""Text encoders in GGUF files, as llama.cpp's converter writes them."""

import json

import numpy as np
import pytest
import torch

import tiny
from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.gguf_gemma import published_config, published_name
from soundstage.checkpoints.header import TensorEntry
from soundstage.core.errors import CheckpointError
from soundstage.models.text.gemma import GemmaTower
from soundstage.models.text.tokenizer import train_tokenizer
from soundstage.pipelines import loading
from soundstage.pipelines.loading import load_components
from soundstage.pipelines.text_source import text_source
from soundstage.runtime.quantization.gguf import GgufLinear

gguf = pytest.importorskip("gguf")
CONFIG = {
    "model_type": "gemma3_text",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,  # the sixth is a global one
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 4,
    "rope_theta": 1e6,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
IDS = torch.randint(4, 320, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[0] * 5 + [1] * 7, [1] * 12])


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    tower = GemmaTower.from_config(CONFIG).requires_grad_(False)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # norms away from one, so that they count
    return tower.eval()


def write(path, tower, kind, *, architecture="gemma3", words=(), huggingface=None):
    """Write a tower as llama.cpp's converter does: its names and keys, norms as what is multiplied by."""
    config = tower.model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    theta, factor = config.frequencies["full_attention"]
    writer.add_rope_freq_base(theta)
    if factor != 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)
    if config.query_pre_attn_scalar != config.head_dim:
        writer.add_attention_scale(config.query_pre_attn_scalar**-0.5)
    if "sliding_attention" not in config.layer_types:
        writer.add_array("gemma3.attention.sliding_window_pattern", [False] * config.num_hidden_layers)
    if huggingface is not None:
        writer.add_string("tokenizer.huggingface.json", huggingface)
    if words:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([word for word, _, _ in words])
        writer.add_token_scores([float(score) for _, score, _ in words])
        writer.add_token_types([kind for _, _, kind in words])
        writer.add_add_space_prefix(False)
    form = gguf.GGMLQuantizationType[kind]
    for name, value in tower.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None
        array = value.numpy()
        if name.endswith("norm.weight"):
            writer.add_tensor(stored, array + 1)
        elif kind == "F32":
            writer.add_tensor(stored, array)
        elif kind == "F16":
            writer.add_tensor(stored, array.astype(np.float16))
        else:
            writer.add_tensor(stored, gguf.quants.quantize(array, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tokenizer_json():
    return train_tokenizer(tiny.CAPTIONS, 320).decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of 2.3 whose connectors go with the tower."""
    folder = tmp_path_factory.mktemp("model")
    return tiny.write_embedded(folder / "m.safetensors")


def load(path, model):
    """Load the tower alone, by the way that generation takes."""
    checkpoint = open_checkpoint(model)
    source = text_source(checkpoint, path)
    loader = loading._Loader(checkpoint, loading.Placement(device="cpu", dtype=torch.float32), None)
    return loader._module(keymap.TEXT_TOWER, lambda: GemmaTower.from_config(source.hf_config), source.tower)


def test_every_name_of_the_architecture_is_known(tower):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, CONFIG["num_hidden_layers"])
    for name in tower.state_dict():
        assert published_name(names.get_name(name, try_suffixes=(".weight",))) == name
    assert published_name("output.weight") == "lm_head.weight"
    assert published_name("blk.3.something.weight") == "blk.3.something.weight"


def test_float32_gives_the_same_hidden_states(tmp_path, tower, model, tokenizer_json):
    path = write(tmp_path / "g.gguf", tower, "F32", huggingface=tokenizer_json)
    loaded = load(path, model)
    torch.testing.assert_close(
        loaded.hidden_states(IDS, MASK), tower.hidden_states(IDS, MASK), rtol=0, atol=0
    )


def test_float16_rounds_matrices_and_nothing_else(tmp_path, tower, model, tokenizer_json):
    path = write(tmp_path / "g.gguf", tower, "F16", huggingface=tokenizer_json)
    rounded = GemmaTower.from_config(CONFIG)
    rounded.load_state_dict(
        {n: v if n.endswith("norm.weight") else v.half().float() for n, v in tower.state_dict().items()}
    )
    with torch.no_grad():
        expected = rounded.eval().hidden_states(IDS, MASK)
    torch.testing.assert_close(load(path, model).hidden_states(IDS, MASK), expected, rtol=0, atol=0)


def test_q8_stays_coded_and_gives_nearly_the_same(tmp_path, tower, model, tokenizer_json):
    path = write(tmp_path / "g.gguf", tower, "Q8_0", huggingface=tokenizer_json)
    loaded = load(path, model)
    coded = [layer for layer in loaded.modules() if isinstance(layer, GgufLinear)]
    assert len(coded) == 7 * CONFIG["num_hidden_layers"]
    weight = tower.model.layers[0].mlp.up_proj.weight
    step = weight.abs().unflatten(-1, (-1, 32)).amax(-1) / 127  # of every block of 32
    distance = (loaded.model.layers[0].mlp.up_proj.weight - weight).abs().unflatten(-1, (-1, 32)).amax(-1)
    assert (distance <= 0.57 * step).all()  # half a step, and what the step is rounded by: 127 / 2048
    states, expected = (some.hidden_states(IDS, MASK)[MASK.bool()] for some in (loaded, tower))
    error = (states - expected).norm() / expected.norm()
    assert 0 < error < 0.04  # up to half a step in 127 of each weight, through seven layers of random weights


def test_the_configuration_is_read_back(tmp_path, tower, tokenizer_json):
    path = write(tmp_path / "g.gguf", tower, "F32", huggingface=tokenizer_json)
    read = GemmaTower.from_config(open_checkpoint(path).metadata["gemma_config"])
    assert read.model.config == tower.model.config


def test_the_largest_model_scales_queries_by_its_own_number():
    sizes = {"embedding_length": 5376, "block_count": 62, "attention.head_count": 32}
    fields = {f"gemma3.{key}": value for key, value in {**sizes, "attention.key_length": 128}.items()}
    assert published_config(fields, {})["query_pre_attn_scalar"] == 168
    fields["gemma3.block_count"] = 48
    assert published_config(fields, {})["query_pre_attn_scalar"] == 128
    assert published_config({**fields, "gemma3.attention.scale": 0.0625}, {})["query_pre_attn_scalar"] == 256


def test_layers_may_be_listed_in_the_file():
    entry = {"token_embd.weight": TensorEntry("F32", (9, 8), 0, 288)}
    config = published_config({"gemma3.attention.sliding_window_pattern": [True, False]}, entry)
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert config["vocab_size"] == 9


def test_a_tokenizer_beside_the_file_counts_first(tmp_path, tower, model, tokenizer_json):
    path = write(tmp_path / "g.gguf", tower, "F32", huggingface="not read")
    (tmp_path / "tokenizer.json").write_text(tokenizer_json)
    source = text_source(open_checkpoint(model), path)
    assert json.loads(source.tokenizer.to_bytes()) == json.loads(tokenizer_json)


def test_a_file_without_a_tokenizer_says_where_to_put_one(tmp_path, tower, model):
    path = write(tmp_path / "g.gguf", tower, "F32")
    with pytest.raises(CheckpointError, match=r"put tokenizer\.json .* beside it"):
        text_source(open_checkpoint(model), path)


def test_words_in_the_file_are_a_tokenizer(tmp_path, tower, model):
    words = [("<pad>", 0, 3), ("<eos>", 0, 3), ("<bos>", 0, 3), ("<unk>", 0, 2), ("▁", -3, 1)]
    words += [("b", -4, 1), ("a", -5, 1), ("l", -6, 1), ("ba", -2.5, 1), ("ll", -0.5, 1), ("ball", -2, 1)]
    path = write(tmp_path / "g.gguf", tower, "F32", words=words)
    tokenizer = text_source(open_checkpoint(model), path).tokenizer
    by_id = [word for word, _, _ in words]
    # "ll" is joined first, then "ba", then both
    assert [by_id[i] for i in tokenizer.ids("ball  a")] == ["<bos>", "ball", "▁", "▁", "a"]


def test_other_models_are_refused(tmp_path, tower, model):
    path = write(tmp_path / "g.gguf", tower, "F32", architecture="llama")
    with pytest.raises(CheckpointError, match="architecture 'llama'; what is needed is a Gemma-3"):
        text_source(open_checkpoint(model), path)


def test_a_prompt_is_encoded_as_with_the_published_files(tmp_path):
    model = tiny.write_model(tmp_path / "m.safetensors", "2.3")
    folder = tiny.write_gemma(tmp_path / "gemma")
    path = write(tmp_path / "g.gguf", GemmaTower.from_directory(folder, torch.float32), "F32")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    published, from_gguf = (
        load_components(model, components=("text",), text_encoder=where).text.encode([tiny.CAPTIONS[0]])
        for where in (folder, path)
    )
    for stream in ("video", "audio"):
        torch.testing.assert_close(getattr(from_gguf, stream), getattr(published, stream), rtol=0, atol=0)


def test_a_file_that_is_not_there_is_named(tmp_path, model):
    with pytest.raises(CheckpointError, match=r"absent\.gguf does not exist"):
        text_source(open_checkpoint(model), tmp_path / "absent.gguf")
