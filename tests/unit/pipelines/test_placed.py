"""A model whose weights are elsewhere makes the same clip, bit for bit."""

from dataclasses import replace

import pytest
import torch

import tiny
from setups import setup_of
from soundstage.checkpoints import reading
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.reading import is_borrowed
from soundstage.core.errors import ResourceError
from soundstage.models.transformer.kept import Kept
from soundstage.pipelines import batching, placed
from soundstage.pipelines.loras import choose_loras, loras_in_force
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.placed import Placed
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest
from soundstage.runtime.offload import StreamedBlocks, StreamingPlan, hangings
from soundstage.runtime.planning import DevicePlan
from soundstage.runtime.quantization.layer import QuantizedLinear
from soundstage.runtime.residency import send_home

REQUEST = GenerationRequest(
    prompt=tiny.CAPTIONS[0], width=32, height=32, num_frames=9, num_inference_steps=2, seed=3
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny.write_embedded(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture(scope="module")
def resident(file):
    return Pipeline.load(file, device="cpu")(REQUEST)


def same(a, b):
    return torch.equal(a.pixels, b.pixels) and torch.equal(a.waveform, b.waveform)


@pytest.mark.parametrize("offload", ["stream", "disk"])
def test_the_clip_is_the_same_wherever_the_weights_are(file, resident, offload):
    pipeline = Pipeline.load(file, device="cpu", placing=Placing(offload=offload), requests=[REQUEST])
    blocks = pipeline.transformer.transformer_blocks
    assert isinstance(blocks, StreamedBlocks)
    assert blocks.plan.on_disk == (offload == "disk")
    assert same(pipeline(REQUEST), resident)
    assert same(pipeline(REQUEST), resident)  # again, from where the first run left the blocks


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model of five blocks, whose slots are filled again and again; its clip, with four passes a step."""
    path = tiny.write_embedded(tmp_path_factory.mktemp("deep") / "m.safetensors", num_layers=5)
    request = replace(
        REQUEST,
        num_inference_steps=3,
        guidance_scale=3.0,
        stg_scale=1.0,
        stg_blocks=(2,),
        modality_scale=2.0,
    )
    pipeline, seen = Pipeline.load(path, device="cpu"), []
    pipeline.transformer.register_forward_hook(
        lambda *args: seen.append(len(args[2]["passes"].branches)), with_kwargs=True
    )
    clip = pipeline(request)
    assert seen == [4, 4, 4]
    return path, request, clip


@pytest.mark.parametrize("offload", ["stream", "disk"])
@pytest.mark.parametrize("resident", [0, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_blocks_that_take_turns_in_the_slots_make_the_same_clip(
    deep, offload, resident, batched, monkeypatch
):
    path, request, expected = deep
    monkeypatch.setattr(reading, "SMALL_BYTES", 0)
    if not batched:
        monkeypatch.setattr(batching, "CPU_NUMBERS", 0)
        expected = Pipeline.load(path, device="cpu")(request)
    monkeypatch.setattr(placed, "StreamingPlan", lambda **how: StreamingPlan(**how | {"resident": resident}))
    pipeline = Pipeline.load(path, device="cpu", placing=Placing(offload=offload), requests=[request])
    filled, fill = [], StreamedBlocks._fill
    monkeypatch.setattr(
        StreamedBlocks, "_fill", lambda *args, **how: filled.append(args[0]) or fill(*args, **how)
    )
    assert same(pipeline(request), expected)
    fills = filled.count(pipeline.transformer.transformer_blocks)
    assert fills == 3 * (5 - resident) + 1  # each block in every step, and the first once more


def test_weights_on_disk_are_not_read_into_memory(file):
    pipeline = Pipeline.load(file, device="cpu", placing=Placing(offload="disk"))
    block = pipeline.transformer.transformer_blocks._modules["0"]
    size = file.stat().st_size
    assert block.attn1.to_q.weight.untyped_storage().nbytes() == size  # a view of the whole file


def test_what_stays_on_disk_can_be_in_another_format_than_the_file(file, monkeypatch):
    wanted = Pipeline.load(file, device="cpu", placing=Placing(quantize="int8"))(REQUEST)
    monkeypatch.setattr(reading, "SMALL_BYTES", 0)
    for _ in range(2):  # converted, and found converted
        pipeline = Pipeline.load(file, device="cpu", placing=Placing(offload="disk", quantize="int8"))
        layer = pipeline.transformer.transformer_blocks._modules["0"].attn1.to_q
        assert layer.codes.untyped_storage().nbytes() > 10 * layer.codes.nbytes  # a view of a whole file
        assert same(pipeline(REQUEST), wanted)


def test_networks_take_turns_on_a_device(file, resident):
    """Another name for the CPU: what is not on the device is found out by what `bring` was asked for."""
    pipeline = Pipeline.load(file, device="cpu")
    plan = DevicePlan(
        kind="turns", budget=10**9, reserved=0, visitors=10**9, spare=10**9, streamed={"transformer": 0}
    )
    placed = Placed(plan=plan)
    from soundstage.runtime.residency import Residency

    placed.residency = Residency(torch.device("cpu"), 10**9)
    components = placed.take(pipeline.components, torch.device("cpu"))
    moved = Pipeline(components, prompts=pipeline.prompts)
    assert placed.residency.num_bytes == 0
    assert same(moved(REQUEST), resident)
    kinds = {type(visitor._network).__name__ for visitor in placed.residency._present}
    assert {"GemmaTower", "TextConnectors", "AVTransformer", "VideoVAE", "AudioVAE"} <= kinds


def test_a_clip_in_a_format_differs_a_little_from_the_exact_one(file, resident):
    pipeline = Pipeline.load(file, device="cpu", placing=Placing(quantize="int8", quantize_text="int8"))
    made = pipeline(REQUEST)
    assert not same(made, resident)
    assert (made.pixels - resident.pixels).abs().mean() < 0.02


@pytest.mark.parametrize("mode", ["fused", "live"])
@pytest.mark.parametrize(
    "placing",
    [
        Placing(quantize="int8"),
        Placing(quantize="fp8", offload="stream"),
        Placing(offload="disk"),
        Placing(quantize="int4", offload="disk"),
    ],
    ids=repr,
)
def test_loras_act_on_weights_wherever_they_are_and_leave_no_trace(
    tmp_path, file, mode, placing, monkeypatch
):
    monkeypatch.setattr(reading, "SMALL_BYTES", 0)
    pipeline = Pipeline.load(file, device="cpu", placing=placing)
    lora = tmp_path / "lora.safetensors"
    tiny.write_lora(lora)
    before = pipeline(REQUEST)
    state = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    with_lora = pipeline(replace(REQUEST, loras=(f"{lora}:0.02",), lora_mode=mode))
    assert not same(with_lora, before)
    for name, value in pipeline.transformer.state_dict().items():
        assert torch.equal(value.view(torch.uint8), state[name].view(torch.uint8)), name
    assert same(pipeline(REQUEST), before)
    is_quantised = any(isinstance(layer, QuantizedLinear) for layer in pipeline.transformer.modules())
    assert is_quantised == (placing.quantize is not None)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_loras_are_computed_beside_weights_that_stay_on_disk(tmp_path, file, quantize, monkeypatch):
    """What is mapped is read-only: a weight that is written into ends the process."""
    monkeypatch.setattr(reading, "SMALL_BYTES", 0)
    lora = tiny.write_lora(tmp_path / "lora.safetensors")
    request, content = replace(REQUEST, loras=(f"{lora}:0.02",)), file.read_bytes()
    live = replace(request, lora_mode="live")
    wanted = Pipeline.load(file, device="cpu", placing=Placing(quantize=quantize))(live)
    on_disk = Pipeline.load(file, device="cpu", placing=Placing(quantize=quantize, offload="disk"))
    layer = on_disk.transformer.get_submodule("transformer_blocks.0.attn1.to_q")
    places = [place.home.data_ptr() for place in hangings(layer)]
    assert all(is_borrowed(place.home) for place in hangings(layer))
    assert same(on_disk(request), wanted)
    assert same(on_disk(request), wanted)
    send_home(on_disk.transformer)
    assert [place.home.data_ptr() for place in hangings(layer)] == places  # in the file again
    assert file.read_bytes() == content


def test_what_was_kept_is_made_anew_under_a_lora_and_after_it(tmp_path, file):
    network = Pipeline.load(file, device="cpu", placing=Placing(offload="stream")).transformer
    layer, kept = network.get_submodule("transformer_blocks.0.attn1.to_q"), Kept()
    lora = tiny.write_lora(tmp_path / "lora.safetensors")
    chosen = choose_loras((f"{lora}:0.02",), open_checkpoint(file))

    def ask():
        return kept.get("weight", (layer,), layer.weight.clone)

    before = ask()
    for _ in range(2):
        with loras_in_force(network, chosen, "fused"):
            assert not torch.equal(ask(), before)
        assert torch.equal(ask(), before)


def test_a_device_that_is_too_small_is_refused_before_anything_is_loaded(file):
    from soundstage.pipelines.fitting import fit

    checkpoint = open_checkpoint(file)
    setup = setup_of(checkpoint)
    with pytest.raises(ResourceError, match=r"do not suffice: at least 0\.8 GB"):
        fit(setup, REQUEST, 10**8)
