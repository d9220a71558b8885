"""`soundstage plan` on a release that is not here, on a file, and when nothing fits."""

import json

import pytest
import torch

import lora_files
from soundstage.checkpoints.layer_table import released_layers
from soundstage.cli.main import run
from soundstage.pipelines import placement
from soundstage.runtime import rates

MODEL = ("--model", "ltx-2-19b-dev", "--size", "1280x704", "--duration", "5")


def test_a_release_is_planned_without_its_files(capsys):
    assert run(["plan", *MODEL, "--vram", "24GB", "--quantize", "fp8"]) == 0
    shown = capsys.readouterr().out
    assert "RTX 4090" in shown
    assert "table of known GPUs" in shown
    assert "the released header" in shown
    assert "placement: networks take turns" in shown
    assert "peak 2" in shown


def test_blocks_that_stay_exact_are_counted_and_shown(capsys):
    sizes = []
    for skip in ([], ["--quantize-skip", "transformer_blocks.0", "--quantize-skip", "*.ff"]):
        assert run(["plan", *MODEL, "--gpu", "H100", "--quantize", "fp8", *skip, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        sizes.append(next(part["bytes"] for part in shown["parts"] if part["name"] == "transformer"))
    assert shown["quantize_skip"] == ["transformer_blocks.0", "*.ff"]
    assert sizes[1] > 1.1 * sizes[0]
    assert run(["plan", *MODEL, "--gpu", "H100", "--quantize", "fp8", *skip]) == 0
    assert "fp8 but for transformer_blocks.0, *.ff" in capsys.readouterr().out
    assert run(["plan", *MODEL, "--gpu", "H100", "--quantize", "fp8", "--quantize-skip", "blocks.0"]) == 2
    assert "quantize_skip='blocks.0' names no layer" in capsys.readouterr().err


def test_what_is_converted_onto_the_disk_is_told(capsys):
    disk = ("--vram", "24GB", "--offload", "disk")
    added = {}
    for quantize in ("none", "fp8", "int4"):
        assert run(["plan", *MODEL, *disk, "--quantize", quantize, "--json"]) == 0
        added[quantize] = json.loads(capsys.readouterr().out)["converted_bytes"]
    assert added["none"] == 0
    assert 1.7 < added["fp8"] / added["int4"] < 1.85  # 8 bits and 4.5
    assert run(["plan", *MODEL, *disk, "--quantize", "fp8"]) == 0
    assert "converted once into 18." in capsys.readouterr().out


def test_machines_get_numbers(capsys):
    assert run(["plan", *MODEL, "--gpu", "H100", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["placement"] == "resident"
    assert shown["peak_bytes"] == max(phase["peak_bytes"] for phase in shown["phases"])
    assert {"denoise", "decode"} <= {phase["name"] for phase in shown["phases"]}


def test_the_embedded_model_is_planned_for_this_machine(capsys):
    assert run(["plan", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "measured now" in shown
    assert "everything stays on the device" in shown


def test_on_a_cpu_the_budget_is_what_running_has(capsys, monkeypatch):
    for module in (rates, placement):
        monkeypatch.setattr(module, "available_memory", lambda: 9 * 10**9)
    assert run(["plan", "--device", "cpu", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["budget_bytes"] == 9 * 10**9
    assert shown["memory_bytes"] == rates.rates_of(torch.device("cpu")).memory
    assert run(["plan", "--device", "cpu"]) == 0
    assert f"9.00 GB of {shown['memory_bytes'] / 1e9:.2f} GB to use" in capsys.readouterr().out
    assert run(["plan", "--device", "cpu", "--vram", "8GB"]) == 2
    assert "vram=8GB is about the memory of a GPU" in capsys.readouterr().err
    large = ("--size", "512x512", "--num-frames", "481")
    for module in (rates, placement):
        monkeypatch.setattr(module, "available_memory", lambda: 2 * 10**8)
    assert run(["plan", "--device", "cpu", *large]) == 2
    assert "0.2 GB of device memory do not suffice" in capsys.readouterr().err
    assert run(["generate", "a", "-o", "clip.mp4", "--dry-run", "--device", "cpu", *large]) == 0
    assert "it does not fit here" in capsys.readouterr().out


def test_kernels_are_planned_for(capsys):
    card, beside = ("--gpu", "RTX 4090", "--quantize", "fp8"), {}
    for kernels in ("auto", "triton", "torch"):
        assert run(["plan", *MODEL, *card, "--kernels", kernels, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        (denoising,) = (phase for phase in shown["phases"] if phase["name"] == "denoise")
        beside[kernels] = denoising["activation_bytes"]
        assert shown["kernels"] == ("torch" if kernels == "torch" else "triton")
    assert 2 * beside["triton"] == 2 * beside["auto"] < beside["torch"]
    assert run(["plan", *MODEL, *card]) == 0
    assert "kernels: triton" in capsys.readouterr().out
    assert run(["plan", "--device", "cpu", "--kernels", "triton"]) == 2
    assert "kernels 'triton' cannot run: the device is cpu" in capsys.readouterr().err


def test_what_does_not_fit_is_one_line_with_a_cure(capsys):
    assert run(["plan", *MODEL, "--vram", "24GB", "--offload", "none"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "what would fit: --offload stream" in shown


def test_what_is_not_known_of_a_release_is_a_note(capsys):
    model = ("--model", "ltx-2.5-22b-dev", "--size", "1280x704", "--duration", "5", "--vram", "24GB")
    assert run(["plan", *model, "--quantize", "fp8"]) == 0
    shown = capsys.readouterr().out
    assert "note: of the text encoder of LTX-2.5" in shown
    assert "placement: " in shown


def test_host_memory_is_told_and_blocks_go_to_disk_where_it_is_small(capsys):
    card = ("--gpu", "RTX 4070", "--vram", "12GB", "--quantize", "fp8")
    assert run(["plan", *MODEL, *card, "--ram", "64GB"]) == 0
    shown = capsys.readouterr().out
    assert "of host memory (64.00 GB to use)" in shown
    assert "on disk" not in shown
    assert run(["plan", *MODEL, *card, "--ram", "20GB"]) == 0
    shown = capsys.readouterr().out
    assert "and wait in 8.4" in shown  # networks that take turns, though blocks are on disk
    assert "do not stay wait on disk, assumed to give 3 GB a second" in shown


def test_more_memory_than_the_gpu_has_is_refused(capsys):
    assert run(["plan", *MODEL, "--vram", "100GB", "--gpu", "RTX 4090"]) == 2
    assert "vram=100GB is more than RTX 4090 has: 24 GB" in capsys.readouterr().err


def test_how_many_passes_go_together_is_told(capsys):
    card = ("--model", "ltx-2-19b-dev", "--size", "768x512", "--duration", "5", "--gpu", "RTX 5090")
    assert run(["plan", *card, "--quantize", "fp8"]) == 0
    assert "denoise: a step is 4 passes, in batches of 2" in capsys.readouterr().out
    assert run(["plan", *card, "--quantize", "fp8", "--batch", "3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (denoising,) = (phase for phase in shown["phases"] if phase["name"] == "denoise")
    assert (shown["num_clips"], denoising["rows"], denoising["rows_at_once"]) == (3, 12, 2)
    assert run(["plan", *MODEL, "--gpu", "H100", "--quantize", "fp8", "--batch", "0"]) == 2
    assert "--batch 0 is not positive; the least is 1" in capsys.readouterr().err


def test_loras_are_counted_and_those_of_another_model_refused(capsys, tmp_path):
    layers = released_layers("2.0")
    names = [name for name in layers if ".attn1.to_" in name]
    files = {
        "fits": lora_files.draw(layers, names, rank=16),
        "wide": lora_files.draw({names[0]: (64, 64)}, names[:1]),
    }
    paths = {name: lora_files.write(tmp_path / f"{name}.safetensors", drawn) for name, drawn in files.items()}
    card = ("--gpu", "RTX 4090", "--quantize", "fp8", "--json")
    weights, hosts = {}, {}
    for mode in ("fused", "live", None):
        lora = [] if mode is None else ["--lora", str(paths["fits"]), "--lora-mode", mode]
        assert run(["plan", *MODEL, *card, *lora]) == 0
        shown = json.loads(capsys.readouterr().out)
        weights[mode] = next(part["bytes"] for part in shown["parts"] if part["name"] == "transformer")
        hosts[mode] = shown["host_bytes"]
    branches = sum(2 * 16 * sum(layers[name]) for name in names)
    assert weights["live"] - weights[None] == pytest.approx(branches, rel=1e-6)
    assert weights["fused"] == weights[None]
    adapted = sum(layers[name][0] * layers[name][1] for name in names)
    assert hosts["fused"] - hosts[None] == pytest.approx(adapted, rel=0.01)  # 8 bits each, and scales
    assert run(["plan", *MODEL, *card, "--lora", str(paths["wide"])]) == 2
    assert "[64, 64] instead of" in capsys.readouterr().err
