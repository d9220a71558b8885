"""Models load in every format: quantised on the way, or as an fp8 or GGUF file has them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.reading import read_tensors
from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import CheckpointError, RequestError
from soundstage.pipelines.loading import load_checkpoint, load_components
from soundstage.pipelines.placing import Placing
from soundstage.runtime.quantization.fp8 import StoredFp8Linear
from soundstage.runtime.quantization.gguf import GgufLinear
from soundstage.runtime.quantization.layer import QuantizedLinear
from soundstage.runtime.quantization.registry import QUANTIZATIONS

TRANSFORMER = ("transformer",)
QUANTIZED = re.compile(r"transformer_blocks\.0\..*(to_q|to_k|to_v|to_out\.0|proj|net\.2)\.weight$")


def twins(module):
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "m.safetensors", "2.3")


@pytest.fixture(scope="module")
def plain(file):
    return load_components(file, components=TRANSFORMER).transformer


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_weights_are_quantised_while_they_are_loaded(file, plain, name):
    loaded = load_components(file, components=TRANSFORMER, placing=Placing(quantize=name)).transformer
    found = twins(loaded)
    assert len(found) == 2 * 28
    for path, twin in found.items():
        exact = plain.get_submodule(path)
        bound = QUANTIZATIONS[name].weight_error(exact.weight)
        assert ((twin.weight - exact.weight).abs() <= bound * (1 + 1e-5)).all()
        assert torch.equal(twin.bias, exact.bias)


@pytest.mark.parametrize("name", ["fp8", "int4"])
def test_layers_that_are_skipped_stay_exact(file, plain, name):
    placing = Placing(quantize=name, quantize_skip=("transformer_blocks.0", "*.ff"))
    loaded = load_components(file, components=TRANSFORMER, placing=placing).transformer
    found = twins(loaded)
    assert len(found) == 28 - 2  # the second block without the feed-forward of the picture
    assert all(path.startswith("transformer_blocks.1.") and ".ff." not in path for path in found)
    exact, kept = plain.state_dict(), loaded.state_dict()
    for name in kept.keys() & exact.keys():
        assert torch.equal(kept[name], exact[name])


def test_a_pattern_that_names_no_layer_is_refused(file):
    placing = Placing(quantize="fp8", quantize_skip=("transformer_blocks.7",))
    with pytest.raises(
        RequestError, match=r"quantize_skip='transformer_blocks\.7'.*transformer_blocks\.[01]"
    ):
        load_components(file, components=TRANSFORMER, placing=placing)


def test_layers_of_the_picture_can_be_named_where_only_sound_is_loaded(file):
    placing = Placing(quantize="int8", quantize_skip=("*.attn1", "transformer_blocks.0.audio_ff"))
    loaded = load_components(file, components=TRANSFORMER, streams=("audio",), placing=placing).transformer
    names = twins(loaded)
    assert "transformer_blocks.1.audio_attn1.to_q" in names
    assert not any("blocks.0.audio_ff" in name for name in names)


def test_skipping_where_nothing_is_quantised_is_refused():
    with pytest.raises(RequestError, match=r"quantize_text_skip='model\.layers\.0'.*quantize_text=none"):
        Placing(quantize_text="none", quantize_text_skip=("model.layers.0",))


def fp8_file(path, *, input_scale):
    """Write the tiny model with the layers of its first block in fp8, as the official files are."""
    parts = tiny.modules("2.3")
    tensors = {}
    for part, module in parts.items():
        for name, value in tiny.official(part, module.state_dict()).items():
            tensors[name] = value
            if QUANTIZED.search(name):
                scale = value.abs().amax() / 448
                tensors[name] = (value / scale).to(torch.float8_e4m3fn)
                tensors[f"{name}_scale"] = scale
                if input_scale:
                    tensors[f"{name.removesuffix('weight')}input_scale"] = torch.tensor(0.02)
    write_safetensors(path, tensors, {"config": tiny.config("2.3"), "model_version": "2.3.0"})
    return path


def test_an_fp8_file_loads_as_it_is(tmp_path):
    path = fp8_file(tmp_path / "m.safetensors", input_scale=True)
    loaded = load_components(path, components=TRANSFORMER).transformer
    stored = open_checkpoint(path).part(keymap.TRANSFORMER)
    found = twins(loaded)
    assert len(found) == 28
    assert all(isinstance(twin, StoredFp8Linear) and not twin.multiplies for twin in found.values())
    decoded = read_tensors(dict(stored))
    for name, twin in found.items():
        assert torch.equal(twin.codes.view(torch.uint8), raw(stored[f"{name}.weight"]).view(twin.codes.shape))
        assert twin.input_scale.item() == pytest.approx(0.02)
        assert torch.equal(twin.weight.bfloat16(), decoded[f"{name}.weight"])


def raw(stored):
    return torch.from_numpy(
        np.fromfile(stored.path, np.uint8, stored.entry.num_bytes, offset=stored.entry.start)
    )


def test_an_fp8_file_can_be_multiplied_as_fp8_or_widened(tmp_path):
    path = fp8_file(tmp_path / "m.safetensors", input_scale=False)
    as_fp8 = twins(load_components(path, components=TRANSFORMER, placing=Placing(quantize="fp8")).transformer)
    kept = [layer for layer in as_fp8.values() if isinstance(layer, StoredFp8Linear)]
    assert (len(as_fp8), len(kept)) == (56, 28)  # what is fp8 is not rounded again, the rest is rounded now
    assert all(layer.multiplies and layer.input_scale is None for layer in kept)
    widened = load_components(path, components=TRANSFORMER, placing=Placing(quantize="none")).transformer
    assert twins(widened) == {}
    layer = "transformer_blocks.0.attn1.to_q"
    assert torch.equal(widened.get_submodule(layer).weight, as_fp8[layer].weight)


def test_layers_of_an_fp8_file_can_be_widened_when_they_are_loaded(tmp_path):
    path = fp8_file(tmp_path / "m.safetensors", input_scale=True)
    placing = Placing(quantize_skip=("transformer_blocks.0.attn1",))  # in the file's own format otherwise
    loaded = load_components(path, components=TRANSFORMER, placing=placing).transformer
    assert len(twins(loaded)) == 28 - 4
    layer, whole = "transformer_blocks.0.attn1.to_q", load_components(path, components=TRANSFORMER)
    assert torch.equal(loaded.get_submodule(layer).weight, twins(whole.transformer)[layer].weight)


def gguf_file(path, kind):
    """Write the transformer alone, in names without prefix, the matrices of its first block coded."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "ltxv")
    writer.add_string("config", json.dumps({"transformer": wide_config()}))
    writer.add_string("model_version", "2.3.0")
    for name, value in wide_transformer().state_dict().items():
        if QUANTIZED.search(name) and value.shape[-1] % 32 == 0:
            codes = gguf.quants.quantize(value.numpy(), gguf.GGMLQuantizationType[kind])
            writer.add_tensor(name, codes, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def wide_config():
    """The tiny transformer with rows that blocks of 32 divide."""
    sizes = {"attention_head_dim": 16, "cross_attention_dim": 32, "audio_attention_head_dim": 16}
    return {**tiny.config("2.3")["transformer"], **sizes, "audio_cross_attention_dim": 32}


def wide_transformer():
    from soundstage.models.transformer.config import TransformerConfig
    from soundstage.models.transformer.model import AVTransformer

    model = AVTransformer(TransformerConfig.from_header(wide_config()))
    tiny.randomise(model, "gguf")
    return model.requires_grad_(False)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_file_loads_as_it_is(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    path, original = gguf_file(tmp_path / "m.gguf", kind), wide_transformer()
    loaded = load_components(path, components=TRANSFORMER).transformer
    found = twins(loaded)
    assert len(found) == 28
    for name, twin in found.items():
        assert isinstance(twin, GgufLinear)
        codes = gguf.quants.quantize(
            original.get_submodule(name).weight.numpy(), gguf.GGMLQuantizationType[kind]
        )
        expected = gguf.quants.dequantize(codes, gguf.GGMLQuantizationType[kind])
        torch.testing.assert_close(twin.weight, torch.from_numpy(expected), rtol=1e-6, atol=1e-7)
    rest = {n for n in original.state_dict() if not QUANTIZED.search(n)}
    state = loaded.state_dict()
    assert all(torch.equal(state[name], original.state_dict()[name]) for name in rest)


def test_a_gguf_file_can_be_decoded_or_quantised_otherwise(tmp_path):
    path = gguf_file(tmp_path / "m.gguf", "Q8_0")
    kept = twins(load_components(path, components=TRANSFORMER).transformer)
    decoded = load_components(path, components=TRANSFORMER, placing=Placing(quantize="none")).transformer
    again = twins(load_components(path, components=TRANSFORMER, placing=Placing(quantize="int8")).transformer)
    for name, layer in kept.items():
        assert torch.equal(decoded.get_submodule(name).weight, layer.weight)
        bound = QUANTIZATIONS["int8"].weight_error(layer.weight)
        assert ((again[name].weight - layer.weight).abs() <= bound * (1 + 1e-5)).all()


def test_the_text_encoder_is_quantised_by_itself(tmp_path):
    path = tiny.write_embedded(tmp_path / "m.safetensors")
    exact = load_components(path, components=("text",)).text
    quantised = load_components(path, components=("text",), placing=Placing(quantize_text="int8")).text
    assert len(twins(quantised)) == 2 * 7  # queries, keys, values, output; gate, up, down
    assert twins(quantised.connectors) == {}
    skipping = Placing(quantize_text="int8", quantize_text_skip=("model.layers.1", "*.mlp"))
    assert len(twins(load_components(path, components=("text",), placing=skipping).text)) == 4
    for stream in ("video", "audio"):
        expected, got = (getattr(text.encode([tiny.CAPTIONS[0]]), stream) for text in (exact, quantised))
        assert 0 < (got - expected).norm() < 0.02 * expected.norm()


def test_names_are_held_against_the_plain_network(tmp_path):
    path = fp8_file(tmp_path / "m.safetensors", input_scale=True)
    checkpoint = open_checkpoint(path)
    part = dict(checkpoint.parts[keymap.TRANSFORMER])
    del part["transformer_blocks.0.attn1.to_q.weight"]
    broken = replace(checkpoint, parts={**checkpoint.parts, keymap.TRANSFORMER: part})
    with pytest.raises(CheckpointError, match=r"1 missing: transformer_blocks.0.attn1.to_q.weight"):
        load_checkpoint(broken, components=TRANSFORMER, placing=Placing(quantize="int4"))


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16 * 10**9), ("1.5 GiB", 3 * 2**29), ("800mb", 8 * 10**8)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert Placing(vram=text).vram_bytes == size


@pytest.mark.parametrize("text", ["16 apples", "-1GB", "GB", "1.2.3GB", "0GB"])
def test_what_is_no_size_is_an_error_that_shows_one(text):
    with pytest.raises(RequestError, match="16GB"):
        Placing(vram=text)
