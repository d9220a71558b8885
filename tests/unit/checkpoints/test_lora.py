"""What a LoRA file says, read from its header; and which model it fits."""

import json
import math
import pickle

import pytest
import torch
from safetensors.torch import load_file

import lora_files
import tiny
from soundstage.checkpoints.detect import GENERATIONS
from soundstage.checkpoints.layer_table import released_layers
from soundstage.checkpoints.load_lora import LoraReader
from soundstage.checkpoints.lora import ReferenceFactors, agreed_factors, branch_bytes, open_lora
from soundstage.checkpoints.lora_fit import (
    LoraMismatchError,
    check_fit,
    embedded_layers,
    fitting,
    fitting_part,
    made_for,
    titles,
)
from soundstage.checkpoints.reading import TensorReader
from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import CheckpointError

TO_Q = "transformer_blocks.0.attn1.to_q"


def check(lora, generation):
    check_fit(
        lora,
        lora_files.shapes(generation),
        model="model.safetensors",
        generation=GENERATIONS[generation],
    )


def released(path, names, generation="2.3", **metadata):
    """Write a LoRA for layers of a full-size model."""
    factors = lora_files.draw(released_layers(generation), names, rank=1)
    return open_lora(lora_files.write(path, factors, **metadata))


@pytest.mark.parametrize("form", lora_files.FORMS)
def test_every_form_is_the_same_lora(form, tmp_path):
    factors = lora_files.draw("2.3", alpha=6.0, magnitudes=True)
    lora = open_lora(lora_files.write(tmp_path / "l.safetensors", factors, form))
    assert lora.form == form
    assert set(lora.layers) == set(lora_files.TARGETS)
    check(lora, "2.3")
    with LoraReader(lora) as reader:
        for name, expected in factors.items():
            read = reader.read(name)
            assert torch.equal(read.down, expected.down)
            assert torch.equal(read.up, expected.up)
            assert torch.equal(read.magnitude, expected.magnitude)
            assert read.scale == 2.0
        assert reader.read("proj_out") is None


@pytest.mark.parametrize(
    ("alpha", "metadata", "scale"),
    [
        (None, {}, 1.0),
        (3.0, {}, 1.0),
        (1.5, {}, 0.5),
        (None, {"lora_alpha": "12"}, 4.0),
        (None, {"lora_adapter_metadata": {"transformer.r": 3, "transformer.lora_alpha": 6}}, 2.0),
        (
            None,
            {"lora_adapter_metadata": {"lora_alpha": 6, "use_rslora": True}},
            pytest.approx(6 / math.sqrt(3)),
        ),
        (1.5, {"lora_alpha": "12"}, 0.5),
        (None, {"ss_network_alpha": "12"}, 1.0),  # stays behind when converters multiply it in
    ],
)
def test_alpha_is_the_tensor_or_the_metadata_or_the_rank(alpha, metadata, scale, tmp_path):
    factors = lora_files.draw("2.3", [TO_Q], alpha=alpha)
    lora = open_lora(lora_files.write(tmp_path / "l.safetensors", factors, **metadata))
    assert lora.layers[TO_Q].scale == scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_alpha_is_read_in_any_number_format(dtype, tmp_path):
    tensors = {
        f"diffusion_model.{TO_Q}.lora_A.weight": torch.ones(4, 24),
        f"diffusion_model.{TO_Q}.lora_B.weight": torch.ones(24, 4),
        f"diffusion_model.{TO_Q}.alpha": torch.tensor(8, dtype=dtype),
    }
    write_safetensors(tmp_path / "l.safetensors", tensors, {})
    assert open_lora(tmp_path / "l.safetensors").layers[TO_Q].scale == 2.0


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"reference_downscale_factor": "2"}, ReferenceFactors(spatial=2)),
        ({"reference_spatial_scale_factor": "2"}, ReferenceFactors(spatial=2)),
        (
            {"reference_downscale_factor": "2", "reference_spatial_scale_factor": "2"},
            ReferenceFactors(spatial=2),
        ),
        (
            {"reference_downscale_factor": "1", "reference_temporal_scale_factor": "4"},
            ReferenceFactors(temporal=4),
        ),
    ],
)
def test_reference_factors_are_read(metadata, expected, tmp_path):
    factors = lora_files.draw("2.3", [TO_Q])
    assert open_lora(lora_files.write(tmp_path / "l.safetensors", factors, **metadata)).reference == expected


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"reference_downscale_factor": "0"}, "reference_downscale_factor='0', which is not a positive"),
        ({"reference_downscale_factor": "1.5"}, "is not a positive integer"),
        ({"reference_temporal_scale_factor": "many"}, "is not a positive integer"),
        (
            {"reference_downscale_factor": "2", "reference_spatial_scale_factor": "3"},
            r"two spatial reference factors, \[2, 3\]",
        ),
    ],
)
def test_bad_reference_factors_are_refused(metadata, message, tmp_path):
    lora = open_lora(lora_files.write(tmp_path / "l.safetensors", lora_files.draw("2.3", [TO_Q]), **metadata))
    with pytest.raises(CheckpointError, match=message):
        _ = lora.reference


def test_branches_are_counted_from_headers(tmp_path):
    shapes = {"blocks.0.to_q": (24, 36), "out": (4, 24)}
    plain = lora_files.draw(shapes, shapes, rank=3)
    dora = lora_files.draw(shapes, ["out"], rank=5, magnitudes=True)
    loras = [
        open_lora(lora_files.write(tmp_path / f"{i}.safetensors", factors))
        for i, factors in enumerate((plain, dora))
    ]
    assert branch_bytes(loras, 2) == {
        "blocks.0.to_q": 2 * 3 * (24 + 36),
        "out": 2 * ((3 + 5) * (4 + 24) + 4),
    }
    assert branch_bytes([], 2) == {}


def test_reference_factors_of_several_must_agree(tmp_path):
    factors = lora_files.draw("2.3", [TO_Q])
    plain, half, third = (
        open_lora(lora_files.write(tmp_path / f"{i}.safetensors", factors, **metadata))
        for i, metadata in enumerate(
            ({}, {"reference_downscale_factor": "2"}, {"reference_downscale_factor": "3"})
        )
    )
    assert agreed_factors([plain]) == ReferenceFactors()
    assert agreed_factors([plain, half, half]) == ReferenceFactors(spatial=2)
    with pytest.raises(CheckpointError, match=r"2 times smaller .* 3 times smaller .*; use one of them"):
        agreed_factors([half, plain, third])


def refusal(lora, generation="2.3"):
    with pytest.raises(LoraMismatchError) as caught:
        check(lora, generation)
    return caught.value


def test_lora_of_another_generation_is_named_as_such(tmp_path):
    older = lora_files.draw("2.0", [TO_Q, "caption_projection.linear_1"])
    error = refusal(open_lora(lora_files.write(tmp_path / "old.safetensors", older)))
    assert "which is LTX-2.3: it is a LoRA for LTX-2.0" in str(error)
    assert "1 layers that the model does not have: diffusion_model.caption_projection.linear_1" in str(error)
    newer = lora_files.draw("2.3", [TO_Q, "prompt_adaln_single.linear"])
    error = refusal(open_lora(lora_files.write(tmp_path / "new.safetensors", newer, "kohya")), "2.0")
    assert "which is LTX-2.0: it is a LoRA for LTX-2.3 or LTX-2.5" in str(error)
    assert error.unmatched == ("lora_unet_prompt_adaln_single_linear",)


def test_rows_of_the_modulation_tell_the_generation_without_names(tmp_path):
    lora = open_lora(
        lora_files.write(tmp_path / "l.safetensors", lora_files.draw("2.0", ["adaln_single.linear"]))
    )
    assert made_for(lora) == ("2.0",)
    error = refusal(lora)
    assert "it is a LoRA for LTX-2.0" in str(error)
    assert error.misshapen == {"adaln_single.linear": ((144, 24), (216, 24))}
    assert "1 layers of another shape: adaln_single.linear [144, 24] instead of [216, 24]" in str(error)


def test_stated_generation_counts_before_what_layers_look_like(tmp_path):
    factors = lora_files.draw("2.3", [TO_Q, "transformer_blocks.0.attn1.to_gate_logits"])
    path = tmp_path / "l.safetensors"
    assert made_for(open_lora(lora_files.write(path, factors))) == ("2.3", "2.5")
    assert made_for(open_lora(lora_files.write(path, factors, model_version="2.5.0"))) == ("2.5",)


def test_full_size_loras_name_the_generations_they_fit(tmp_path):
    path = tmp_path / "l.safetensors"
    assert fitting(released(path, [TO_Q])) == ("2.0", "2.3", "2.5")
    assert fitting(released(path, [TO_Q, "adaln_single.linear"])) == ("2.3", "2.5")
    assert fitting(released(path, [TO_Q, "adaln_single.linear"], "2.0")) == ("2.0",)
    assert fitting(released(path, [TO_Q], model_version="2.3.0")) == ("2.3",)
    assert titles(("2.3", "2.5")) == "LTX-2.3 or LTX-2.5"


def test_lora_for_the_embedded_model_is_told_by_its_shapes(tmp_path):
    factors = lora_files.draw(embedded_layers(), [TO_Q])
    lora = open_lora(lora_files.write(tmp_path / "l.safetensors", factors))
    assert fitting(lora) == ("embedded",)
    assert "it is a LoRA for embedded" in str(refusal(lora))


def test_long_lists_are_cut_and_counted(tmp_path):
    names = [f"transformer_blocks.{i}.attn1.to_q" for i in range(2, 32)]
    error = refusal(released(tmp_path / "l.safetensors", names))
    assert len(error.unmatched) == 30
    assert "30 layers that the model does not have" in str(error)
    assert "... and 10 more" in str(error)
    assert str(error).count("to_q") == 20


def test_keys_that_cannot_be_used_are_listed(tmp_path):
    lora_files.write(tmp_path / "l.safetensors", lora_files.draw("2.3", [TO_Q]))
    extra = {
        "diffusion_model.patchify_proj.lora_A.weight": torch.ones(2, 4),  # without its other half
        "diffusion_model.proj_out.lora_A.weight": torch.ones(2, 24),
        "diffusion_model.proj_out.lora_B.weight": torch.ones(4, 3),  # of another rank
        "diffusion_model.proj_out.bias_something": torch.ones(1),
        "text_encoder.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 4),
    }
    write_safetensors(
        tmp_path / "bad.safetensors", load_file(tmp_path / "l.safetensors") | extra, {"format": "pt"}
    )
    error = refusal(open_lora(tmp_path / "bad.safetensors"))
    assert "2 broken layers: patchify_proj has no lora_B (up), " in str(error)
    assert "proj_out has factors of shapes [2, 24] and [4, 3]" in str(error)
    assert "1 keys that are not understood: diffusion_model.proj_out.bias_something" in str(error)
    assert "1 keys for the text encoder, which is not adapted here: text_encoder.model" in str(error)


def part(lora, generation="2.3", **given):
    model = {"model": "model.safetensors", "generation": GENERATIONS[generation]}
    return fitting_part(lora, lora_files.shapes(generation), **model, **given)


def test_lora_that_fits_is_used_whole_without_a_note(tmp_path):
    lora = open_lora(lora_files.write(tmp_path / "l.safetensors", lora_files.draw("2.3")))
    assert part(lora).file is lora
    assert part(lora).note == ""


def test_what_fits_of_a_lora_is_used_and_the_rest_is_named(tmp_path):
    path = tmp_path / "l.safetensors"
    lora_files.write(
        path, lora_files.draw("2.0", [TO_Q, "adaln_single.linear", "caption_projection.linear_1"])
    )
    fits = part(open_lora(path))
    assert set(fits.file.layers) == {TO_Q}
    assert fits.note == (
        f"{path} fits model.safetensors in part: 1 of its 3 layers are used, so that little may come of it; "
        "it is a LoRA for LTX-2.0; left out: 1 layers that the model does not have: "
        "diffusion_model.caption_projection.linear_1; "
        "1 layers of another shape: adaln_single.linear [144, 24] instead of [216, 24]"
    )


@pytest.mark.parametrize(("num_foreign", "is_little"), [(1, False), (2, True)])
def test_less_than_nine_tenths_is_said_to_be_little(num_foreign, is_little, tmp_path):
    """Nine layers fit: of ten that is 90 %, of eleven less."""
    foreign = {f"transformer_blocks.{7 + i}.attn1.to_q": (24, 24) for i in range(num_foreign)}
    factors = lora_files.draw("2.3") | lora_files.draw(foreign, foreign)
    fits = part(open_lora(lora_files.write(tmp_path / "l.safetensors", factors)))
    assert len(fits.file.layers) == len(lora_files.TARGETS) == 9
    assert f"9 of its {9 + num_foreign} layers are used" in fits.note
    assert ("so that little may come of it" in fits.note) == is_little


def test_a_note_names_the_first_keys_of_each_kind(tmp_path):
    path = lora_files.write(tmp_path / "l.safetensors", lora_files.draw("2.3"))
    extra = {f"diffusion_model.proj_out.diff_{i}": torch.ones(1) for i in range(5)}
    extra["text_encoder.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(2, 4)
    write_safetensors(path, load_file(path) | extra, {"format": "pt"})
    note = part(open_lora(path)).note
    assert "9 of its 9 layers are used, so that little may come of it" in note  # 9 of 9 + 6 keys / 2
    assert "5 keys that are not understood: diffusion_model.proj_out.diff_0" in note
    assert note.count("proj_out.diff") == 3
    assert "... and 2 more" in note
    assert "1 keys for the text encoder, which is not adapted here: text_encoder.model" in note


def test_nothing_that_fits_and_broken_layers_are_refused(tmp_path):
    foreign = lora_files.draw("2.0", ["caption_projection.linear_1"])
    with pytest.raises(LoraMismatchError, match=r"it is a LoRA for LTX-2\.0"):
        part(open_lora(lora_files.write(tmp_path / "old.safetensors", foreign)))
    path = lora_files.write(tmp_path / "l.safetensors", lora_files.draw("2.3", [TO_Q]))
    half = {"diffusion_model.patchify_proj.lora_A.weight": torch.ones(2, 4)}
    write_safetensors(path, load_file(path) | half, {"format": "pt"})
    with pytest.raises(LoraMismatchError, match="1 broken layers: patchify_proj has no lora_B"):
        part(open_lora(path))


def test_layers_of_the_text_side_fit_in_part_too(tmp_path):
    projection = "text_embedding_projection.aggregate_embed"
    factors = lora_files.draw("2.3", [TO_Q]) | lora_files.draw({projection: (24, 36)}, [projection])
    lora = open_lora(lora_files.write(tmp_path / "l.safetensors", factors))
    assert part(lora, text_layers={projection: (24, 36)}).note == ""
    for there in ({}, {projection: (24, 40)}):
        fits = part(lora, text_layers=there)
        assert (set(fits.file.layers), fits.file.text_layers) == ({TO_Q}, {})
        assert "1 of its 2 layers are used" in fits.note


def test_layers_of_the_text_side_are_held_against_the_connectors(tmp_path):
    projection = "text_embedding_projection.aggregate_embed"
    factors = lora_files.draw("2.3", [TO_Q]) | lora_files.draw({projection: (24, 36)}, [projection])
    lora = open_lora(lora_files.write(tmp_path / "l.safetensors", factors))
    assert set(lora.layers) == {TO_Q}
    assert lora.text_shapes == {projection: (24, 36)}
    assert "1 layers that the model does not have: " in str(refusal(lora))
    layers = lora_files.shapes("2.3")
    model = {"model": "m", "generation": GENERATIONS["2.3"]}
    check_fit(lora, layers, text_layers={projection: (24, 36)}, **model)
    with pytest.raises(LoraMismatchError, match=r"layers of another shape: text_embedding_projection"):
        check_fit(lora, layers, text_layers={projection: (24, 40)}, **model)


def test_magnitude_of_another_length_is_broken(tmp_path):
    factors = lora_files.draw("2.3", [TO_Q], magnitudes=True)
    wrong = {TO_Q: lora_files.Factors(factors[TO_Q].down, factors[TO_Q].up, None, torch.ones(7))}
    lora = open_lora(lora_files.write(tmp_path / "l.safetensors", wrong))
    assert "has a magnitude of shape [7, 1] for 24 outputs" in str(refusal(lora))


@pytest.mark.parametrize(("key", "method"), [("lokr_w1", "LoKr"), ("hada_w1_a", "LoHa")])
def test_relatives_are_refused_by_name(key, method, tmp_path):
    path = tmp_path / "l.safetensors"
    write_safetensors(path, {f"diffusion_model.{TO_Q}.{key}": torch.ones(2, 2)}, {})
    with pytest.raises(CheckpointError, match=f"is a {method} .*soundstage reads LoRA and DoRA only"):
        open_lora(path)


def test_alpha_patterns_are_refused(tmp_path):
    adapter = json.dumps({"transformer.alpha_pattern": {"to_q": 4}})
    path = lora_files.write(
        tmp_path / "l.safetensors", lora_files.draw("2.3", [TO_Q]), lora_adapter_metadata=adapter
    )
    with pytest.raises(CheckpointError, match="states its alphas as patterns"):
        open_lora(path)


def test_alpha_of_many_numbers_is_refused(tmp_path):
    path = tmp_path / "l.safetensors"
    factors = lora_files.draw("2.3", [TO_Q])
    tensors = {
        f"{TO_Q}.lora_A.weight": factors[TO_Q].down,
        f"{TO_Q}.lora_B.weight": factors[TO_Q].up,
        f"{TO_Q}.alpha": torch.ones(3),
    }
    write_safetensors(path, tensors, {})
    with pytest.raises(CheckpointError, match=r"should be one number, not F32 \[3\]"):
        open_lora(path)


def test_files_that_are_no_lora_are_refused(tmp_path):
    pickled = tmp_path / "pickled.safetensors"
    pickled.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(CheckpointError, match="is a PyTorch pickle"):
        open_lora(pickled)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match=r"lora.pt is a PyTorch pickle or another zip"):
        open_lora(tmp_path / "lora.pt")
    whole = lora_files.write(tmp_path / "l.safetensors", lora_files.draw("2.3")).read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"half.safetensors is truncated"):
        open_lora(tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="holds no LoRA; it holds: transformer"):
        open_lora(tiny.write_model(tmp_path / "model.safetensors", "2.3"))


def test_tensors_are_read_when_their_layer_is_asked_for(tmp_path, monkeypatch):
    names = [TO_Q, "transformer_blocks.0.attn1.to_k"]
    path = lora_files.write(tmp_path / "l.safetensors", lora_files.draw("2.3", names, alpha=3.0))
    lora = open_lora(path)
    read, original = [], TensorReader.read

    def watch(self, stored, **options):
        read.append(stored.name)
        return original(self, stored, **options)

    monkeypatch.setattr(TensorReader, "read", watch)
    with LoraReader(lora) as reader:
        assert read == []
        reader.read(TO_Q)
    assert read == [f"diffusion_model.{TO_Q}.lora_{half}.weight" for half in "AB"]
