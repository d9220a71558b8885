"""What a GPU would be given is counted; this holds the transformer to its numbers of kernels and bytes."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.flops import forward_flops

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WIDE = {"num_layers": 2}  # at the released widths; all blocks are alike


@pytest.fixture(scope="module")
def traffic():
    spec = importlib.util.spec_from_file_location("traffic", BENCHMARKS / "traffic.py")
    module = importlib.util.module_from_spec(spec)
    path, sys.modules["traffic"] = list(sys.path), module
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("traffic")
    sys.path[:] = path


@pytest.fixture(scope="module")
def wide(traffic):
    size = traffic.replace(traffic.SIZES["full"], header=WIDE)
    return {generation: traffic.count_ours(generation, "triton", size) for generation in ("2.0", "2.3")}


@pytest.mark.parametrize(("generation", "kernels", "units"), [("2.0", 52, 31.7), ("2.3", 64, 37.0)])
def test_a_block_starts_few_kernels_and_moves_few_bytes(wide, generation, kernels, units):
    first = wide[generation][0]
    assert len(first.block) <= kernels
    moved = sum(call.num_bytes for call in first.block if call.kind == "rest") / first.unit
    assert 20 < moved <= units
    assert {call.name for call in first.block if call.kind == "rest"} <= {
        "_norm_modulate",
        "_norm_modulate_twice",
        "_norm_rope_both",
        "_gate_heads",
        "_gate_add",
        "rms_norm",
        "clone",  # of keys of the text, for the norm
        *({"add_"} if generation == "2.0" else {"add", "addcmul"}),  # texts: without gates, modulated
    }


@pytest.mark.parametrize(("generation", "most"), [("2.0", 620), ("2.3", 710)])
def test_two_blocks_and_what_is_around_them_ask_for_few_operations(wide, generation, most):
    """Views included: each takes the host a microsecond or two."""
    first = wide[generation][0]
    assert len(first.calls) < first.num_operations <= most


def test_the_peak_of_a_forward_is_within_its_bar(traffic, wide):
    for generation in ("2.0", "2.3"):
        first = wide[generation][0]
        assert 8 * first.unit < first.peak < 0.95 * traffic.GIB


def test_products_are_those_of_the_formula(traffic, wide):
    for generation, counts in wide.items():
        size = traffic.SIZES["full"]
        config = TransformerConfig.from_header(traffic.header(generation, traffic.replace(size, header=WIDE)))
        formula = forward_flops(
            config,
            num_video_tokens=size.video,
            num_audio_tokens=size.audio,
            num_text_tokens=size.text,
        )
        assert sum(call.flop for call in counts[0].calls) == pytest.approx(formula.total, rel=1e-3)


def test_texts_cost_less_within_a_run(wide):
    (first, within, guided), (first_3, within_3, _) = wide["2.0"], wide["2.3"]
    assert len(first.block) - len(within.block) == 6  # of each text a product, a norm and its copy
    assert len(first_3.block) == len(within_3.block), "2.3 modulates its texts in every step"
    assert 1.5 * len(within.calls) < len(guided.calls) < 4 * len(first.calls)


def test_the_script_runs_and_knows_the_peer(traffic, monkeypatch, capsys):
    arguments = ["traffic.py", "--config", "tiny", "--generations", "2.0", "--kernels", "torch"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--list", "torch-2.0", "--host", "1"])
    traffic.main()
    printed = capsys.readouterr().out
    assert "Counts and estimates, not timings: tiny" in printed
    assert "ours 2.0, torch, first: kernels of a middle block" in printed
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines] == ["network", "ours 2.0", "diffusers 2.0"]
    assert "| 196 (28, 6, 162) |" in lines[2], "as counted of diffusers by others"
    assert lines[0].endswith("| host, ms |")
    assert all(0 < float(line.split("|")[-2]) < 1000 for line in lines[1:])
