"""What a transformer computes with: chosen by name, told by name, refused with a reason."""

import pytest
import torch

from soundstage.core.errors import RequestError
from soundstage.nn.attention_backends import ATTENTION
from soundstage.nn.kernels.choice import TorchKernels, use_kernels
from soundstage.pipelines.compute import Compute
from soundstage.pipelines.equipment import equip
from transformer_samples import config, inputs, transformer

CPU = torch.device("cpu")


def test_by_default_the_device_decides():
    model = transformer("2.3")
    got = equip(model, Compute(), CPU, torch.float32)
    assert (got.attention, got.kernels, got.is_exact, got.forward) == ("sdpa", "torch", True, model)


def test_every_attention_of_the_transformer_is_changed_and_the_result_is_not():
    model, given = transformer("2.3"), inputs(config("2.3"))
    with torch.no_grad():
        before = model(*given)
        equip(model, Compute(attention="math"), CPU, torch.float32)
        after = model(*given)
    blocks = model.transformer_blocks
    layers = [layer for block in blocks for layer in block.children() if hasattr(layer, "to_q")]
    assert len(layers) == 6 * len(blocks)
    assert all(layer.attention_backend is ATTENTION["math"] for layer in layers)
    torch.testing.assert_close(after.video, before.video)
    torch.testing.assert_close(after.audio, before.audio)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (Compute(attention="flash3"), "'flash3' cannot run: FlashAttention-3 is not installed"),
        (Compute(attention="sage"), "'sage' cannot run: SageAttention is not installed"),
        (Compute(kernels="triton"), "'triton' cannot run: the device is cpu"),
        (Compute(compile="graphs"), "'graphs' needs a GPU, and the device is cpu; use 'blocks'"),
    ],
)
def test_what_cannot_run_here_is_refused(compute, message):
    with pytest.raises(RequestError, match=message):
        equip(transformer("2.3"), compute, CPU, torch.float32)


def test_a_start_of_compiled_blocks_is_logged(monkeypatch, caplog):
    """Compiling itself is left out here: a call in which PyTorch counts new graphs stands in for it."""
    stats = torch._dynamo.utils.counters["stats"]
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setitem(stats, "unique_graphs", 5)
    model, given = transformer("2.3"), inputs(config("2.3"))
    forward = equip(model, Compute(compile="blocks"), CPU, torch.float32).forward
    model.register_forward_hook(lambda *_: stats.__setitem__("unique_graphs", 12))
    with caplog.at_level("INFO", "soundstage.runtime"), torch.no_grad():
        forward(*given)
        forward(*given)
    logged = [record.getMessage() for record in caplog.records if record.name == "soundstage.runtime.compile"]
    assert len(logged) == 1
    assert logged[0].startswith("a step that compiled 7 graphs took ")


def test_kernels_of_every_block_and_attention_are_changed():
    model, mine = transformer("2.3"), TorchKernels("mine")
    assert use_kernels(model, mine) == len(model.transformer_blocks) * 7
    for block in model.transformer_blocks:
        assert block.kernels is mine
        assert block.attn1.kernels is mine
