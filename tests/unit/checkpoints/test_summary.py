"""What is said of a checkpoint: what it is, what it can do, what it needs."""

import pytest
import torch

import tiny
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.save import write_safetensors
from soundstage.checkpoints.summary import summarise

T2AV, T2A = "text to video with sound (T2AV)", "text to sound (T2A)"


def summary(path):
    return summarise(open_checkpoint(path, require_data=False))


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
def test_a_whole_model(generation, tmp_path):
    got = summary(tiny.write_model(tmp_path / "m.safetensors", generation))
    assert (got.kind, got.generation, got.variant) == ("model", generation, "dev")
    assert {T2AV, T2A} <= set(got.can)
    assert got.needs[0].startswith("the text encoder: ")
    tensors = [t for module in tiny.modules(generation).values() for t in module.state_dict().values()]
    assert got.parameters == sum(tensor.numel() for tensor in tensors)
    network = tiny.modules(generation)["transformer"]
    assert dict(got.streams) == network.parameter_counts()
    assert got.is_complete


def test_a_split_file_needs_the_rest(tmp_path):
    got = summary(tiny.write_pack(tmp_path))
    assert got.kind == "part of a split model"
    assert got.can == ("denoise latents, given text features",)
    assert "the video VAE, in a file of its own" in got.needs
    assert "the text projection, in the text encoder's file" in got.needs
    vae = summary(tmp_path / "vae" / "ltx-2.5-video-vae-conv-bf16.safetensors")
    assert vae.can == ("encode pictures", "decode pictures")
    assert vae.needs == ("a transformer file, to generate",)


def test_a_lora_and_an_upsampler_are_named(tmp_path):
    lora = summary(tiny.write_lora(tmp_path / "l.safetensors"))
    assert (lora.kind, lora.generation) == ("LoRA", "unknown")
    path = tmp_path / "u.safetensors"
    config = {"spatial_upsample": False, "temporal_upsample": True}
    write_safetensors(path, {"initial_conv.weight": torch.zeros(1)}, {"config": config})
    assert summary(path).can == ("double the frame rate of video latents",)


def test_the_diffusion_decoder_is_pointed_out(tmp_path):
    path = tmp_path / "v.safetensors"
    tensors = {"vae.decoder.det_stages.0.x": torch.zeros(1), "vae.encoder.x": torch.zeros(1)}
    write_safetensors(path, tensors, {"model_version": "2.5.0"})
    got = summary(path)
    assert got.can == ("encode pictures",)
    assert any("take the conv file" in note for note in got.notes)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x.weight": torch.zeros(2).to(torch.float8_e4m3fn), "x.weight_scale": torch.ones(1)}, "fp8"),
        ({"x.weight": torch.zeros(2, dtype=torch.uint8), "x.weight_scale_2": torch.ones(1)}, "NVFP4"),
        ({"x.weight": torch.zeros(2)}, ""),
    ],
)
def test_quantisation_is_named(tmp_path, tensors, words):
    path = tmp_path / "q.safetensors"
    write_safetensors(path, {f"model.diffusion_model.{n}": t for n, t in tensors.items()}, {})
    assert words in summary(path).quantisation
    assert bool(words) == bool(summary(path).quantisation)


def test_single_bytes_of_a_vae_are_no_quantisation(tmp_path):
    path = tmp_path / "v.safetensors"
    silent = torch.zeros(2, 2).to(torch.float8_e4m3fn)
    write_safetensors(
        path, {"vae.decoder.x.weight": silent, "model.diffusion_model.x.weight": torch.zeros(2)}, {}
    )
    assert summary(path).quantisation == ""


def test_unknown_tensors_are_counted(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"optimizer.a": torch.zeros(1), "vae.encoder.x": torch.zeros(1)}, {})
    assert summary(path).unknown == ("optimizer.a",)
    assert "1 tensors belong to no known part" in summary(path).notes
