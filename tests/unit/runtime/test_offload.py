"""Streamed blocks: the same numbers, two blocks on the device at most, home again when released."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from live_bytes import LiveBytes
from soundstage.runtime import offload
from soundstage.runtime.offload import NUM_SLOTS, StreamedBlocks, StreamingPlan, stream, streaming_of
from soundstage.runtime.quantization.registry import QUANTIZATIONS, quantize
from transformer_samples import config, guided, inputs, transformer

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


class Net(nn.Module):
    def __init__(self, count=6, width=64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        for block in self.blocks:
            block.register_buffer("table", torch.randn(width, generator=generator))
            block.bias.data = torch.randn(width, generator=generator)
            block.weight.data = torch.randn(width, width, generator=generator) / width**0.5
        self.requires_grad_(False)

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x) + block.table)
        return x


def streamed(device="cpu", resident=0, on_disk=False, **sizes):
    net = Net(**sizes)
    plan = StreamingPlan(device=torch.device(device), resident=resident, on_disk=on_disk)
    return net, stream(net, "blocks", plan)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("resident", [0, 1, 3, 5, 6])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_streaming_changes_no_bit(device, on_disk, resident, count):
    x = torch.randn(3, 64, device=device)
    expected = [Net(count=count).to(device)(x)] * 3
    net, _ = streamed(device, min(resident, count), on_disk, count=count)
    assert all(torch.equal(net(x), value) for value in expected)  # three steps, one after another


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
@pytest.mark.parametrize("name", ["none", *QUANTIZATIONS])
@pytest.mark.parametrize(("resident", "on_disk", "rows_at_once"), [(0, False, 1), (2, True, None)])
def test_a_streamed_transformer_computes_what_a_resident_one_does(
    generation, name, resident, on_disk, rows_at_once
):
    """Five blocks and two slots: each is filled again and again, over two steps of four passes."""
    model, twin = (transformer(generation, num_layers=5).requires_grad_(False) for _ in range(2))
    for network in (model, twin):
        if name != "none":
            quantize(network, name, inside="transformer_blocks")
    blocks = stream(twin, "transformer_blocks", StreamingPlan(device=CPU, resident=resident, on_disk=on_disk))
    runs = [guided(model.config, rows_at_once=rows_at_once) for _ in range(2)]
    for sigma in (1.0, 0.4):
        steps = []
        for network, passes in zip((model, twin), runs, strict=True):
            video, audio = (
                replace(one, timesteps=sigma * one.timesteps, sigma=sigma * one.sigma)
                for one in inputs(model.config, 1)
            )
            with torch.no_grad():
                steps.append(network(video, audio, passes=passes))
        assert torch.equal(steps[1].video, steps[0].video)
        assert torch.equal(steps[1].audio, steps[0].audio)
    assert len(blocks._slots) == NUM_SLOTS < len(blocks._streamed) == 5 - resident


def counting_texts(model):
    """Note whenever a block makes keys and values of a text."""
    made = []
    for block in model.transformer_blocks:
        for attention in (block.attn2, block.audio_attn2):
            own = attention.project_context
            attention.project_context = lambda *args, own=own: made.append(1) or own(*args)
    return made


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("resident", [0, 2])
@pytest.mark.parametrize("name", ["none", "int8"])
def test_streamed_blocks_read_texts_once_as_resident_ones_do(resident, on_disk, name):
    model, passes = transformer("2.0", num_layers=5).requires_grad_(False), guided(config("2.0"))
    if name != "none":
        quantize(model, name, inside="transformer_blocks")
    made, counts = counting_texts(model), []
    plan = StreamingPlan(device=CPU, resident=resident, on_disk=on_disk)
    blocks = stream(model, "transformer_blocks", plan)
    for _ in range(3):
        made.clear()
        with torch.no_grad():
            model(*inputs(model.config, 1), passes=passes)
        counts.append(len(made))
    assert counts == [5 * 2 * 2, 0, 0]  # blocks, streams, texts
    assert passes.kept.num_bytes == model.kept_bytes(num_texts=2, num_text_tokens=5)
    blocks.release()  # as at the end of a stage
    with torch.no_grad():
        model(*inputs(model.config, 1), passes=passes)
    assert not made


@pytest.mark.parametrize("on_disk", [False, True])
def test_no_more_than_two_blocks_are_on_the_device(on_disk):
    net, blocks = streamed(count=12, width=128, on_disk=on_disk)
    x = torch.randn(4, 128)
    activations = 8 * x.nbytes
    with LiveBytes().ignore(net) as live:
        for _ in range(3):
            net(x)
    block = 4 * (128 * 128 + 2 * 128)
    assert blocks.block_bytes == pytest.approx(block, rel=0.02)
    assert NUM_SLOTS * block <= live.peak <= NUM_SLOTS * blocks.block_bytes + activations


def test_the_count_would_see_all_blocks_if_they_stayed():
    net, blocks = streamed(count=12, width=128)
    with LiveBytes().ignore(net) as live:
        kept = [block.weight.clone() for block in blocks]
    assert live.peak > 10 * 4 * 128 * 128
    assert len(kept) == 12


@pytest.mark.gpu
def test_no_more_than_two_blocks_are_on_a_gpu():
    net, blocks = streamed("cuda", count=12, width=2048)
    x = torch.randn(4, 2048, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        net(x)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= NUM_SLOTS * blocks.block_bytes + 64 * x.nbytes + 32 * 2**20  # a matmul's workspace


def test_released_blocks_are_at_home_and_keep_their_names():
    net, blocks = streamed()
    names = list(Net().state_dict())
    net(torch.randn(1, 64))
    assert blocks.is_out
    blocks.release()
    assert not blocks.is_out
    state, expected = net.state_dict(), Net().state_dict()
    assert list(state) == names
    assert all(torch.equal(state[name], expected[name]) for name in names)


def test_a_change_at_home_is_seen_on_the_device():
    net, blocks = streamed()
    x = torch.randn(1, 64)
    net(x)
    blocks.release()
    net.get_submodule("blocks.3").weight.mul_(2)
    changed = Net()
    changed.blocks[3].weight.mul_(2)
    assert torch.equal(net(x), changed(x))


def test_a_layer_that_is_added_comes_along():
    """LoRA branches stand beside the layers for a while."""
    net, blocks = streamed()
    blocks.release()
    block = net.get_submodule("blocks.2")
    block.register_buffer("branch", torch.ones(64))
    seen = [getattr(b, "branch", torch.zeros(1)).sum().item() for b in blocks]
    assert seen == [0, 0, 64, 0, 0, 0]


def test_slot_that_grows_does_not_wait_for_the_use_of_what_it_had():
    """Its memory is new, and what may have used that until now is another matter."""
    net, blocks = streamed()
    net(torch.randn(1, 64))
    for slot in blocks._slots:
        slot.free = "the last use"
    before = [slot.memory.numel() for slot in blocks._slots]
    net.get_submodule("blocks.2").register_buffer("branch", torch.ones(64, 64))
    list(blocks)
    assert [slot.free for slot, size in zip(blocks._slots, before, strict=True)].count(None) == 1
    assert max(slot.memory.numel() for slot in blocks._slots) > max(before)


def test_modules_of_streamed_blocks_are_told_from_those_that_stay():
    net, blocks = streamed(count=4, resident=2)
    there = streaming_of(net)
    assert set(there) == set(blocks.streamed())
    assert [block in there for block in blocks._modules.values()] == [True, False, True, False]
    assert set(there.values()) == {blocks.plan}
    assert streaming_of(Net()) == {}


def test_blocks_of_shared_memory_stay_side_by_side():
    """Weights that were laid behind each other are still so in a slot, for one product instead of three."""
    net, joined = Net(), torch.randn(2 * 64, 64)
    net.blocks[0].weight.data, net.blocks[0].twin = (
        joined[:64],
        nn.Parameter(joined[64:], requires_grad=False),
    )
    blocks = stream(net, "blocks", StreamingPlan(device=CPU))
    first = blocks[0]
    assert first.weight.untyped_storage().data_ptr() == first.twin.untyped_storage().data_ptr()
    assert first.twin.storage_offset() - first.weight.storage_offset() == 64 * 64
    assert torch.equal(torch.cat([first.weight, first.twin]), joined)


class FakeCuda:
    """Locks memory until it refuses; then its error waits for the next kernel, as CUDA's does."""

    def __init__(self, locks, monkeypatch):
        self.left, self.asked, self.error, self.unlocked = locks, 0, 0, 0
        ones = torch.ones
        monkeypatch.setattr(offload, "_cuda", lambda: self)
        monkeypatch.setattr(torch, "ones", lambda *args, **options: self.launch() or ones(*args, **options))

    def cudaHostRegister(self, address, size, flags):  # CUDA's name
        self.asked, self.left = self.asked + 1, self.left - 1
        self.error = self.error if self.left >= 0 else 2
        return 0 if self.left >= 0 else 2

    def cudaHostUnregister(self, address):  # CUDA's name
        self.unlocked += 1

    def launch(self):
        error, self.error = self.error, 0
        if error:
            raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize("says_last_error", [False, True])
@pytest.mark.parametrize("locks", [0, 2, 6])
def test_memory_that_cannot_be_locked_is_told_once_and_leaves_no_error(
    monkeypatch, caplog, locks, says_last_error
):
    cuda = FakeCuda(locks, monkeypatch)
    if says_last_error:
        cuda.cudaGetLastError = lambda: setattr(cuda, "error", 0)
    blocks = StreamedBlocks(list(Net().blocks), StreamingPlan(device=CPU))
    blocks._side = "a stream"
    for block in blocks._modules.values():
        blocks._pack(block)
    blocks._side = None
    assert cuda.error == 0
    assert cuda.asked == min(locks + 1, 6)  # once refused, no more
    assert [record.levelname for record in caplog.records] == ["WARNING"] * (locks < 6)
    del blocks, block
    gc.collect()
    assert cuda.unlocked == locks


class FakeStream:
    """Notes in which order streams are told what."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def record_event(self):
        self.log.append(f"{self.name} marks")
        return self.name

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_copy_waits_for_the_callers_stream_and_the_caller_for_the_copy(monkeypatch, on_disk):
    """Each thread has a stream of its own, so that the one that copies must not be asked."""
    log, streams = [], {}
    monkeypatch.setattr(
        torch.cuda,
        "current_stream",
        lambda device: streams.get(threading.get_ident()) or FakeStream("another", log),
    )
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    streams[threading.get_ident()] = FakeStream("caller", log)
    blocks = StreamedBlocks(list(Net(count=3).blocks), StreamingPlan(device=CPU, on_disk=on_disk))
    blocks._side = FakeStream("side", log)
    blocks._reader = ThreadPoolExecutor(1) if on_disk else None
    blocks[0]
    if blocks._slots[-1].pending is not None:
        blocks._slots[-1].pending.result()
    assert "another marks" not in log
    assert log.count("side waits for caller") == 2  # block 0, and 1 ahead of its turn
    assert log.index("caller marks") < log.index("side waits for caller") < log.index("side marks")
    assert log.index("side marks") < log.index("caller waits for side")
    log.clear()
    blocks[1]
    assert log[0] == "caller marks"  # all that uses block 0, in whose place 2 comes now
    blocks._side = None


def test_ranges_bring_their_blocks_one_after_another():
    net, blocks = streamed()
    expected = [block.weight.clone() for block in Net().blocks]
    some = blocks[1:4]
    assert len(some) == 3
    assert all(torch.equal(b.weight, w) for b, w in zip(some, expected[1:4], strict=True))
    assert torch.equal(blocks[-1].weight, expected[-1])
    assert isinstance(net.blocks, StreamedBlocks)


def test_a_text_encoder_is_streamed_layer_by_layer(tmp_path):
    import tiny
    from soundstage.pipelines.loading import load_components

    path = tiny.write_embedded(tmp_path / "m.safetensors")
    text, twin = (load_components(path, components=("text",)).text for _ in range(2))
    blocks = stream(twin.gemma, "model.layers", StreamingPlan(device=CPU))
    expected, got = (one.encode([tiny.CAPTIONS[1]]) for one in (text, twin))
    assert blocks.is_out
    assert torch.equal(got.video, expected.video)
    assert torch.equal(got.audio, expected.audio)
