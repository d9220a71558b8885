"""Layers that read one input have it brought to 8 bits once, and say exactly what they say alone."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from soundstage.nn.attention import Attention
from soundstage.nn.kernels.choice import TorchKernels, use_kernels
from soundstage.nn.linear import project_together
from soundstage.runtime.quantization import fp8, int8
from soundstage.runtime.quantization.fp8 import Fp8Linear, StoredFp8Linear
from soundstage.runtime.quantization.int8 import Int8Linear, round_rows
from soundstage.runtime.quantization.registry import quantize
from transformer_samples import inputs, transformer


class CountedKernels(TorchKernels):
    """Plain steps that note how many columns are rounded."""

    def __init__(self) -> None:
        self.rounded = []

    def quantise_rows(self, x):
        self.rounded.append(x.shape[-1])
        return super().quantise_rows(x)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layers(count=3, **options):
    made = nn.ModuleList(
        Fp8Linear(64, 32, bias=bool(i % 2), dtype=torch.float32, **options) for i in range(count)
    )
    for i, layer in enumerate(made):
        layer.take_rows(0, random(32, 64, seed=i))
    return made


def stored(*scales):
    """Make layers as an official file has them, with fixed scales of their inputs."""
    made = []
    for i, scale in enumerate(scales):
        layer = StoredFp8Linear(64, 32, bias=False, dtype=torch.float32, has_input_scale=True)
        layer.take_stored("weight", random(32, 64, seed=i).to(torch.float8_e4m3fn))
        layer.take_stored("weight_scale", torch.tensor(0.5))
        layer.take_stored("input_scale", torch.tensor(scale))
        made.append(layer)
    return made


@pytest.fixture
def fixed(monkeypatch):
    """Note the scales by which inputs are rounded."""
    rounded = []

    def quantize_rows(x, scale=None):
        if scale is not None:
            rounded.append(float(scale))
        return plain(x, scale)

    plain = fp8.quantize_rows
    monkeypatch.setattr(fp8, "quantize_rows", quantize_rows)
    return rounded


def assert_as_alone(together, x):
    for layer, got in zip(together, project_together(tuple(together), x), strict=True):
        assert torch.equal(got, layer(x))


def test_one_input_is_rounded_once():
    three, x, kernels = layers(), random(2, 5, 64, seed=9), CountedKernels()
    use_kernels(three, kernels)
    project_together(tuple(three), x)
    assert kernels.rounded == [64]
    assert_as_alone(three, x)


def test_integers_are_rounded_once_for_all_that_multiply_them(monkeypatch):
    seen = []
    monkeypatch.setattr(int8, "round_rows", lambda rows: seen.append(len(rows)) or round_rows(rows))
    three = nn.ModuleList(Int8Linear(64, 32, bias=False, dtype=torch.float32, multiplies=True) for _ in "qkv")
    for index, layer in enumerate(three):
        layer.take_rows(0, random(32, 64, seed=index))
    seen.clear()
    x = random(2, 5, 64, seed=9)
    together = project_together(tuple(three), x)
    assert seen == [10]
    for got, layer in zip(together, three, strict=True):
        assert torch.equal(got, layer(x))


def test_layers_that_do_not_round_are_left_to_themselves():
    kernels, x = CountedKernels(), random(2, 5, 64, seed=9)
    rounding, widening, plain = *layers(2), nn.Linear(64, 32)
    widening.multiplies = False  # as "fp8-bf16" has it
    mixed = nn.ModuleList([widening, rounding, widening, plain, rounding])
    use_kernels(mixed, kernels)
    with torch.no_grad():
        project_together(tuple(mixed), x)
        assert kernels.rounded == [64]
        assert_as_alone(mixed, x)


def test_a_layer_with_a_hook_is_called_as_it_is():
    three, x, kernels, seen = layers(), random(1, 5, 64, seed=9), CountedKernels(), []
    use_kernels(three, kernels)
    three[1].register_forward_hook(lambda *_: seen.append(1))
    project_together(tuple(three), x)
    assert (seen, len(kernels.rounded)) == ([1], 2)


def test_other_kernels_may_round_otherwise():
    three, x = layers(), random(1, 5, 64, seed=9)
    sets = CountedKernels(), CountedKernels()
    for layer, kernels in zip(three, (sets[0], sets[0], sets[1]), strict=True):
        layer.kernels = kernels
    project_together(tuple(three), x)
    assert [len(kernels.rounded) for kernels in sets] == [1, 1]


def test_fixed_scales_are_shared_where_they_are_the_same(fixed):
    three, x = stored(0.25, 0.25, 0.5), random(2, 5, 64, seed=9)
    project_together(tuple(three), x)
    assert fixed == [0.25, 0.5]
    assert_as_alone(three, x)


def test_fixed_scales_that_are_loaded_anew_are_not_mistaken_for_the_old_ones(fixed):
    pair, x = stored(0.25, 0.25), random(2, 5, 64, seed=9)
    pair[1].load_state_dict({**pair[1].state_dict(), "input_scale": torch.tensor(2.0)})
    project_together(tuple(pair), x)
    assert fixed == [0.25, 2.0]
    assert_as_alone(pair, x)


def test_fixed_and_own_scales_are_not_mixed(fixed):
    (alone,), (other,) = stored(0.25), layers(1)
    project_together((alone, other, alone), random(1, 5, 64, seed=9))
    assert fixed == [0.25, 0.25]


@pytest.mark.parametrize("context_dim", [None, 64])
def test_attention_rounds_its_inputs_once_each(context_dim):
    attention, kernels = Attention(64, context_dim, heads=2, head_dim=16), CountedKernels()
    box = nn.ModuleDict({"blocks": nn.ModuleList([attention])})
    quantize(box, "fp8", inside="blocks")
    use_kernels(box, kernels)
    x = random(1, 6, 64)
    with torch.no_grad():
        attention(x, None if context_dim is None else random(1, 3, 64, seed=1))
    #    queries, keys, values of one input; or queries, then keys and values; then what is heard
    assert len(kernels.rounded) == (2 if context_dim is None else 3)


def test_the_transformer_rounds_less_and_computes_the_same(monkeypatch):
    model, kernels = transformer("2.3"), CountedKernels()
    quantize(model, "fp8", inside="transformer_blocks")
    use_kernels(model, kernels)
    with torch.no_grad():
        got = model(*inputs(model.config, 1))
        once = len(kernels.rounded)
        monkeypatch.setattr(Fp8Linear, "rounds_like", lambda *_: False)
        wanted = model(*inputs(model.config, 1))
    assert torch.equal(got.video, wanted.video)
    assert torch.equal(got.audio, wanted.audio)
    # Of a block: 6 attentions of 4 layers, of which 2 read one input thrice and 4 twice; 2 feed-forwards.
    assert once == model.config.num_layers * (2 * 2 + 4 * 3 + 2 * 2)
    assert len(kernels.rounded) - once == model.config.num_layers * (6 * 4 + 2 * 2)


COMPILED = """
import torch
from soundstage.nn.linear import project_together
from soundstage.runtime.quantization.fp8 import Fp8Linear

layers = torch.nn.ModuleList(Fp8Linear(64, 32, bias=True, dtype=torch.float32) for _ in range(3))
for layer in layers:
    layer.take_rows(0, torch.randn(32, 64))
converted = []

def count(graph, _):
    converted.append(sum("float8_e4m3fn" in str(node.args) for node in graph.graph.nodes))
    return graph

x = torch.randn(2, 5, 64)
with torch.no_grad():
    wanted = project_together(tuple(layers), x)
    got = torch.compile(lambda x: project_together(tuple(layers), x), backend=count, fullgraph=True)(x)
assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
print(converted)
"""


def test_compiled_code_rounds_once_too():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1]"
