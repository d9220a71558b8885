"""The Gemma-3 adapter: what it returns, what padding may do, and which files it reads."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from soundstage.core.errors import CheckpointError
from soundstage.models.text.gemma import GemmaTower, tiny_gemma_config, tower_key

CONFIG = {
    **tiny_gemma_config(50, hidden_size=64, num_layers=3, intermediate_size=48),
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 4,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
IDS = torch.randint(4, 50, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[0] * 7 + [1] * 5, [1] * 12])


def build(dtype: torch.dtype = torch.float32) -> GemmaTower:
    torch.manual_seed(0)
    tower = GemmaTower.from_config(CONFIG)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # norms away from one, so that they count
    return tower.to(dtype).eval()


@pytest.fixture(scope="module")
def tower() -> GemmaTower:
    return build()


def test_there_is_one_state_per_layer_and_one_for_the_embeddings(tower):
    states = tower.hidden_states(IDS, MASK)
    assert states.shape == (2, 12, 64, 4)
    assert (tower.hidden_size, tower.num_states, tower.vocab_size) == (64, 4, 50)
    embeddings = tower.model.embed_tokens.weight[IDS] * 8  # the square root of the width
    torch.testing.assert_close(states[..., 0], embeddings)


def test_the_last_state_is_the_one_after_the_final_norm(tower):
    states = tower.hidden_states(IDS, MASK)
    unweighted = states[..., -1] / (1 + tower.model.norm.weight)
    torch.testing.assert_close(unweighted.square().mean(-1), torch.ones(2, 12), atol=1e-3, rtol=0)


def test_it_equals_the_causal_language_model_of_transformers(tower):
    from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextModel

    config = Gemma3TextConfig.from_dict(copy.deepcopy(CONFIG))
    reference = Gemma3TextModel._from_config(config, attn_implementation="eager").eval()
    reference.load_state_dict(tower.model.state_dict())
    with torch.no_grad():
        output = reference(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
        ours = tower.hidden_states(IDS, MASK)
    expected = torch.stack(output.hidden_states, dim=-1)
    torch.testing.assert_close(ours[MASK.bool()], expected[MASK.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_neither_leaks_nor_makes_nan(dtype):
    tower = build(dtype)
    spoiled = IDS.clone()
    spoiled[0, :7] = 0
    states, other = tower.hidden_states(IDS, MASK), tower.hidden_states(spoiled, MASK)
    assert states.dtype == dtype
    assert states.isfinite().all()
    torch.testing.assert_close(states[MASK.bool()], other[MASK.bool()], atol=0, rtol=0)


def test_gradients_stay_finite_with_padding(tower):
    tower = build()
    states = tower.hidden_states(IDS, MASK)
    states.where(MASK.bool()[:, :, None, None], 0).square().sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_left_out_padding_gives_the_same_states(tower):
    full = tower.hidden_states(IDS[:1], MASK[:1])[:, 7:]
    short = tower.hidden_states(IDS[:1, 7:], MASK[:1, 7:], first_position=7)
    torch.testing.assert_close(short, full, atol=1e-5, rtol=1e-5)


def test_words_hear_earlier_words_only(tower):
    changed = IDS.clone()
    changed[1, 8] = 4 + (IDS[1, 8] - 3) % 46
    moved = (tower.hidden_states(changed, MASK) - tower.hidden_states(IDS, MASK))[1].abs().amax((1, 2))
    assert (moved[:8] == 0).all()
    assert (moved[8:] > 0).all()


def test_a_tower_built_on_meta_computes_the_same_once_filled(tower):
    with torch.device("meta"):
        empty = GemmaTower.from_config(CONFIG)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(tower.state_dict(), assign=True)
    torch.testing.assert_close(empty.hidden_states(IDS, MASK), tower.hidden_states(IDS, MASK))


def test_a_cast_rounds_the_weights_and_nothing_else(tower):
    there_and_back = build(torch.bfloat16).float()
    rounded = GemmaTower.from_config(CONFIG)
    rounded.load_state_dict({name: t.bfloat16().float() for name, t in tower.state_dict().items()})
    torch.testing.assert_close(
        there_and_back.hidden_states(IDS, MASK), rounded.hidden_states(IDS, MASK), atol=0, rtol=0
    )


@pytest.mark.parametrize(
    "older",
    [
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {"rope_scaling": {"type": "linear", "factor": 8.0}},
    ],
)
def test_older_spellings_of_the_configuration_mean_the_same(tower, older):
    config = {name: value for name, value in CONFIG.items() if name != "rope_parameters"} | older
    again = GemmaTower.from_config(config)
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again.hidden_states(IDS, MASK), tower.hidden_states(IDS, MASK))


def test_every_sixth_layer_is_global_where_none_are_listed():
    config = {name: value for name, value in CONFIG.items() if name != "layer_types"} | {
        "num_hidden_layers": 12
    }
    kinds = GemmaTower.from_config(config).model.config.layer_types
    assert [index for index, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation='relu'"),
        ({"layer_types": ["full_attention"]}, "layer_types lists 1 layers of 3"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type='yarn'"),
        ({"head_dim": 0}, "head_dim=0 is not a whole number above 0"),
    ],
)
def test_what_no_gemma_has_is_an_error(change, message):
    with pytest.raises(CheckpointError, match=message):
        GemmaTower.from_config({**CONFIG, **change})


def test_the_state_dict_has_the_flattened_names(tower):
    names = set(tower.state_dict())
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= names
    assert "model.layers.2.self_attn.q_norm.weight" in names
    assert all(name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")) for name in names)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("language_model.model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("norm.weight", "model.norm.weight"),
        ("lm_head.weight", None),
        ("language_model.lm_head.weight", None),
        ("vision_tower.vision_model.encoder.layers.0.layer_norm1.weight", None),
        ("model.vision_tower.vision_model.embeddings.patch_embedding.weight", None),
        ("multi_modal_projector.mm_soft_emb_norm.weight", None),
    ],
)
def test_names_of_every_kind_of_file_are_understood(name, key):
    assert tower_key(name) == key


@pytest.mark.parametrize("kind", ["gemma4_unified", "llama", None])
def test_another_model_is_an_error_that_names_what_is_needed(kind):
    with pytest.raises(CheckpointError, match=f"model_type {kind!r}; what is needed is a Gemma-3"):
        GemmaTower.from_config({**CONFIG, "model_type": kind})


def test_a_malformed_configuration_is_an_error():
    with pytest.raises(CheckpointError, match="malformed"):
        GemmaTower.from_config({**CONFIG, "hidden_size": "wide"})


def test_an_embedding_model_is_an_error():
    with pytest.raises(CheckpointError, match="embedding model"):
        GemmaTower.from_config({**CONFIG, "use_bidirectional_attention": True})


def test_the_tiny_configuration_is_small_and_trainable():
    tower = GemmaTower.from_config(tiny_gemma_config(512))
    assert (tower.hidden_size, tower.num_states) == (96, 4)
    assert sum(p.numel() for p in tower.parameters()) < 500_000
    assert json.loads(json.dumps(tower.hf_config)) == tower.hf_config


class TestDirectory:
    """Loading a Hugging Face directory."""

    def write(self, path, tower, prefix="language_model.model.", shards=2, config=None):
        multimodal = {"model_type": "gemma3", "text_config": CONFIG, "vision_config": {}}
        (path / "config.json").write_text(json.dumps(config or multimodal))
        tensors = {prefix + k.removeprefix("model."): v for k, v in tower.state_dict().items()}
        tensors["vision_tower.vision_model.embeddings.weight"] = torch.zeros(3)
        tensors["lm_head.weight"] = torch.zeros(50, 64)
        names, index = sorted(tensors), {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            save_file({k: tensors[k].contiguous() for k in names[i::shards]}, path / file)
            index |= dict.fromkeys(names[i::shards], file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    @pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "model.", ""])
    def test_only_the_language_model_is_read(self, tmp_path, tower, prefix):
        self.write(tmp_path, tower, prefix)
        loaded = GemmaTower.from_directory(tmp_path, dtype=torch.float32)
        torch.testing.assert_close(loaded.hidden_states(IDS, MASK), tower.hidden_states(IDS, MASK))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    def test_a_text_only_file_without_index_is_read_and_converted(self, tmp_path, tower):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        save_file(tower.state_dict(), tmp_path / "model.safetensors")
        loaded = GemmaTower.from_directory(tmp_path)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        assert loaded.hidden_states(IDS, MASK).isfinite().all()

    def test_an_empty_directory_is_an_error_that_says_what_belongs_there(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"config\.json does not exist.*gemma-3-12b-it"):
            GemmaTower.from_directory(tmp_path)

    def test_a_directory_without_weights_is_an_error(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
        with pytest.raises(CheckpointError, match=r"lacks weights \(\*\.safetensors\)"):
            GemmaTower.from_directory(tmp_path)

    def test_a_missing_shard_is_named(self, tmp_path, tower):
        self.write(tmp_path, tower)
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002\.safetensors"):
            GemmaTower.from_directory(tmp_path)

    def test_a_damaged_file_is_named(self, tmp_path, tower):
        self.write(tmp_path, tower, shards=1)
        file = tmp_path / "model-00001-of-00001.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match=r"model-00001-of-00001\.safetensors is damaged"):
            GemmaTower.from_directory(tmp_path)

    def test_weights_that_do_not_fit_the_configuration_are_listed(self, tmp_path, tower):
        kinds = ["full_attention"] * 2
        config = {**CONFIG, "num_hidden_layers": 2, "layer_types": kinds, "intermediate_size": 40}
        self.write(tmp_path, tower, config=config)
        with pytest.raises(CheckpointError) as error:
            GemmaTower.from_directory(tmp_path)
        assert "model.layers.2.input_layernorm.weight is unexpected" in str(error.value)
        assert "and 11 more" in str(error.value)  # 13 of layer 2 and 3 of each other layer, 8 shown

    def test_a_misshapen_weight_is_named_with_both_shapes(self, tmp_path, tower):
        self.write(tmp_path, tower, config={**CONFIG, "vocab_size": 60})
        with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is \(50, 64\), not \(60, 64\)"):
            GemmaTower.from_directory(tmp_path)

    def test_a_configuration_that_is_no_json_is_an_error(self, tmp_path):
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
            GemmaTower.from_directory(tmp_path)
