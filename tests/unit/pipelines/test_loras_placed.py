"""LoRAs on a network that is in several places: streamed, resident, on disk, taking turns.

The device "meta" stands for a GPU: what is there cannot be computed with what is in host memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lora_files
import tiny
from setups import setup_of
from soundstage.checkpoints import reading
from soundstage.checkpoints.lora import branch_bytes
from soundstage.nn.lora import Addition, LoraLinear, LowRank
from soundstage.pipelines.fitting import fit
from soundstage.pipelines.loras import (
    LORA_MODES,
    LoraSwitch,
    _fuse_layer,
    branches_of,
    choose_loras,
    linear_layers,
    loras_in_force,
)
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest
from soundstage.runtime.offload import StreamedBlocks, StreamingPlan, stream
from soundstage.runtime.quantization.layer import QuantizedLinear
from soundstage.runtime.quantization.registry import QUANTIZATIONS, take_weight
from soundstage.runtime.residency import Residency, bring

GPU = torch.device("meta")
PROMPT = "a red ball bounces on a wooden floor"
SMALL = {"num_frames": 9, "width": 32, "height": 16, "num_inference_steps": 2, "seed": 7}
CLOSE = {"atol": 1e-3, "rtol": 1e-3}  # float32, another order of sums, after two steps and the decoders
FORMATS = ["none", "fp8", "int8"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_embedded(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def style(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of every layer, of every second one a DoRA."""
    transformer = Pipeline.load(file).transformer
    layers = list(linear_layers(transformer))
    drawn = lora_files.draw(transformer, layers) | lora_files.draw(transformer, layers[::2], magnitudes=True)
    return lora_files.write(tmp_path_factory.mktemp("lora") / "style.safetensors", drawn)


@pytest.fixture(autouse=True)
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the stand-in for a GPU has no values that could be copied from there."""
    monkeypatch.setattr("soundstage.pipelines.loras._kept", torch.clone)


def load(file: Path, **placing: Any) -> Pipeline:
    return Pipeline.load(file, device="cpu", placing=Placing(**placing))


def half_resident(file: Path, **placing: Any) -> Pipeline:
    """Load a model of two blocks, the second of which stays on the device."""
    pipeline = load(file, **placing)
    stream(pipeline.transformer, "transformer_blocks", StreamingPlan(device=GPU, resident=1))
    assert devices(pipeline.transformer) == {"cpu", "meta"}
    assert next(pipeline.transformer.parameters()).is_cpu
    return pipeline


def chosen(pipeline: Pipeline, *texts: str) -> Any:
    return choose_loras(texts, pipeline.components.checkpoint)


def devices(network: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in tensors(network).values()}


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors(network).items()}


def is_as(network: nn.Module, before: dict[str, Tensor]) -> bool:
    now = tensors(network)
    return now.keys() == before.keys() and all(same(now[name], before[name]) for name in before)


def same(a: Tensor, b: Tensor) -> bool:
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def twins(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((name, module) for name, module in network.named_modules() if isinstance(module, LoraLinear))


@pytest.mark.parametrize("quantize", FORMATS)
def test_fused_weights_are_those_of_a_model_in_one_place(file: Path, style: Path, quantize: str) -> None:
    whole, pipeline = load(file, quantize=quantize), half_resident(file, quantize=quantize)
    before = snapshot(pipeline.transformer)
    with (
        loras_in_force(whole.transformer, chosen(whole, f"{style}:0.5"), "fused"),
        loras_in_force(pipeline.transformer, chosen(pipeline, f"{style}:0.5"), "fused"),
    ):
        wanted, got = tensors(whole.transformer), tensors(pipeline.transformer)
        assert all(same(got[name], value) for name, value in wanted.items() if got[name].is_cpu)
        assert not is_as(pipeline.transformer, before)
    assert is_as(pipeline.transformer, before)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_quantised_weight_is_rounded_once(name: str) -> None:
    """Not to bfloat16, in which it is used, before it is rounded to codes."""
    generator = torch.Generator().manual_seed(0)
    weight, down, up = (torch.randn(shape, generator=generator) for shape in ((64, 64), (4, 64), (64, 4)))
    layers = []
    for _ in range(2):
        linear = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
        layers.append(QUANTIZATIONS[name].make(linear, torch.bfloat16))
        take_weight(layers[-1], weight)
    _fuse_layer(layers[0], [Addition(LowRank(down=down, up=up), 0.5)])
    take_weight(layers[1], layers[1].weight.float() + 0.5 * (up @ down))
    assert is_as(layers[0], tensors(layers[1]))


@pytest.mark.parametrize("quantize", FORMATS)
def test_live_branches_are_where_their_layers_are(file: Path, style: Path, quantize: str) -> None:
    pipeline = half_resident(file, quantize=quantize)
    before = snapshot(pipeline.transformer)
    layers = linear_layers(pipeline.transformer)
    loras = chosen(pipeline, f"{style}:0.5", f"{style}:0.1")
    with loras_in_force(pipeline.transformer, loras, "live"):
        found = dict(twins(pipeline.transformer))
        assert found.keys() == layers.keys()
        assert all(len(devices(twin)) == 1 for twin in found.values())
        held = {name: sum(t.nbytes for t in twin.buffers(recurse=False)) for name, twin in found.items()}
        assert held == branch_bytes([lora.file for lora in loras], itemsize=4)
        assert devices(pipeline.transformer) == {"cpu", "meta"}
    assert is_as(pipeline.transformer, before)


@pytest.mark.parametrize("mode", LORA_MODES)
def test_stages_of_a_streamed_model_have_their_own(file: Path, style: Path, mode: str) -> None:
    pipeline = half_resident(file)
    before = snapshot(pipeline.transformer)
    loras = chosen(pipeline, f"{style}:0.5@1", f"{style}:-0.5@2")
    switch = LoraSwitch(pipeline.transformer)
    seen = []
    for stage in (1, 2):
        switch.use(loras, mode, stage=stage)
        seen.append(snapshot(pipeline.transformer))
    switch.release()
    assert not is_as(pipeline.transformer, seen[0])
    assert any(not same(seen[0][name], value) for name, value in seen[1].items())
    assert is_as(pipeline.transformer, before)


@pytest.mark.parametrize("mode", LORA_MODES)
def test_network_that_takes_turns_is_at_home_and_as_it_was_afterwards(
    file: Path, style: Path, mode: str
) -> None:
    pipeline = half_resident(file)
    before = snapshot(pipeline.transformer)
    residency = Residency(GPU, 10**9)
    residency.manage("transformer", pipeline.transformer)
    with loras_in_force(pipeline.transformer, chosen(pipeline, f"{style}:0.5"), mode):
        bring(pipeline.transformer)
        assert next(pipeline.transformer.parameters()).is_meta
        assert next(iter(pipeline.transformer.transformer_blocks)).attn1.to_q.weight.is_meta
    assert residency.num_bytes == 0
    assert is_as(pipeline.transformer, before)


@pytest.mark.parametrize("mode", LORA_MODES)
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_weights_on_disk_are_only_read(
    file: Path, style: Path, mode: str, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SMALL_BYTES", 0)
    wanted = load(file, quantize=quantize)(PROMPT, loras=(f"{style}:0.2",), lora_mode="live", **SMALL)
    pipeline = load(file, quantize=quantize, offload="disk")
    blocks = pipeline.transformer.transformer_blocks
    assert isinstance(blocks, StreamedBlocks)
    before, places = snapshot(pipeline.transformer), [t.data_ptr() for t in tensors(blocks).values()]
    with loras_in_force(pipeline.transformer, chosen(pipeline, f"{style}:0.2"), mode):
        inside = dict(twins(blocks))
        assert inside.keys() == linear_layers(load(file).transformer.transformer_blocks).keys()
        is_coded = any(isinstance(twin.base, QuantizedLinear) for twin in inside.values())
        assert is_coded == (quantize != "none")
        for name, twin in inside.items():
            for leaf, value in tensors(twin.base).items():
                assert same(value, before[f"transformer_blocks.{name}.{leaf}"])
    assert [t.data_ptr() for t in tensors(blocks).values()] == places
    made = pipeline(PROMPT, loras=(f"{style}:0.2",), lora_mode=mode, **SMALL)
    torch.testing.assert_close(made.pixels, wanted.pixels, **CLOSE)
    assert is_as(pipeline.transformer, before)


@pytest.mark.parametrize(
    ("mode", "placing"),
    [
        ("live", {}),
        ("live", {"quantize": "int8"}),
        ("live", {"offload": "disk"}),
        ("fused", {"offload": "disk"}),
    ],
    ids=str,
)
def test_what_is_beside_the_weights_is_in_the_plan(
    file: Path, style: Path, mode: str, placing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicted and measured: the bytes of the network's tensors with LoRAs in force, but for the slots."""
    monkeypatch.setattr(reading, "SMALL_BYTES", 0)
    text = f"{style}:0.5"
    pipeline = load(file, **placing)
    before = sum(tensor.nbytes for tensor in tensors(pipeline.transformer).values())
    with loras_in_force(pipeline.transformer, chosen(pipeline, text), mode):
        measured = sum(tensor.nbytes for tensor in tensors(pipeline.transformer).values()) - before
    checkpoint = pipeline.components.checkpoint
    setup = setup_of(checkpoint, placing=Placing(**placing))
    parts = [
        fit(setup, GenerationRequest(prompt=PROMPT, loras=loras, lora_mode=mode), 10**12).parts["transformer"]
        for loras in ((), (text,))
    ]
    sizes = [part.outer + sum(part.mapped or part.blocks) for part in parts]
    assert measured > 0.1 * before
    assert sizes[1] - sizes[0] == pytest.approx(measured, rel=0.02)
    is_fused = mode == "fused"
    assert parts[1].beside == (sizes[1] - sizes[0] if is_fused else parts[1].beside)
    assert parts[1].num_bytes - parts[0].num_bytes == (0 if is_fused else sizes[1] - sizes[0])
    assert (parts[1].copies > 0) == is_fused


def test_stages_with_loras_of_their_own_take_the_larger_of_both(file: Path, style: Path) -> None:
    pipeline = load(file)
    both, first = (
        branches_of(chosen(pipeline, *texts), "live", 4).num_bytes
        for texts in ((f"{style}@1", f"{style}:0.3@2"), (f"{style}@1",))
    )
    twice = branches_of(chosen(pipeline, f"{style}@1", f"{style}:0.3"), "live", 4).num_bytes
    assert both == first
    assert sum(twice.values()) > 1.8 * sum(first.values())
    assert branches_of(chosen(pipeline, f"{style}:0"), "live", 4).num_bytes == {}


@pytest.mark.parametrize("mode", LORA_MODES)
def test_what_comes_to_the_device_is_counted_with_its_branches(file: Path, style: Path, mode: str) -> None:
    """A network that takes turns makes room for the branches, too."""
    pipeline = load(file)
    residency = Residency(GPU, 10**9)
    residency.manage("transformer", pipeline.transformer)
    bring(pipeline.transformer)
    plain = residency.num_bytes
    with loras_in_force(pipeline.transformer, chosen(pipeline, f"{style}:0.5"), mode):
        bring(pipeline.transformer)
        inside = sum(tensor.nbytes for tensor in tensors(pipeline.transformer).values())
        assert residency.num_bytes == inside
    bring(pipeline.transformer)
    assert residency.num_bytes == plain
    assert (inside > plain) == (mode == "live")
