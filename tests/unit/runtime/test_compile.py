"""`torch.compile` of blocks. What is compiled runs in a process of its own, without the shape hook."""

import copy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from soundstage.core.errors import ResourceError
from soundstage.runtime.compile import cold_start, compile_blocks, uncompile_blocks
from transformer_samples import transformer

TESTS = Path(__file__).parents[2]
SCRIPT = """
import sys
from dataclasses import replace
import torch
from soundstage.core.types import AV
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation, Text
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.model import AVTransformer
from soundstage.runtime.compile import CompiledTransformer, compile_blocks, uncompile_blocks
from transformer_samples import config, inputs

generation, depths, backend = sys.argv[1], [int(depth) for depth in sys.argv[2].split(",")], sys.argv[3]
graphs = []
def count(graph, _):
    graphs.append(graph)
    return graph.forward

def build(depth):
    torch.manual_seed(depth)
    model = AVTransformer(replace(config(generation), num_layers=depth)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model

def longer(stream, by):
    return replace(stream, latents=stream.latents.repeat(1, by, 1), timesteps=stream.timesteps.repeat(1, by),
        positions=stream.positions.repeat(1, 1, by, 1))

def steps(call, video, audio):
    other = AV(*(Text(context=-stream.context) for stream in (video, audio)))
    own, kept = AV(video.text, audio.text), Kept()
    perturbed = Perturbation(skip_video_self_attention=frozenset({1}), skip_a2v="all")
    branches = (Branch(texts=other), Branch(texts=own), Branch(texts=own, perturbation=perturbed))
    for given in (branches, branches[:1], branches):
        yield call(video, audio, passes=Passes(branches=given, kept=kept))

video, audio = inputs(config(generation), batch=1)
pairs = [(longer(video, by), longer(audio, by)) for by in (1, 2, 3)]
counts = []
for depth in depths:
    torch._dynamo.reset()
    graphs.clear()
    model = build(depth)
    forward = CompiledTransformer(model)
    with torch.no_grad():
        wanted = [list(steps(model, *pair)) for pair in pairs]
        names = list(model.state_dict())
        chosen = count if backend == "count" else backend
        assert compile_blocks(model, backend=chosen, fullgraph=True) == depth
        for size, (pair, want) in enumerate(zip(pairs, wanted)):
            for got, exact in zip(steps(forward, *pair), want, strict=True):
                torch.testing.assert_close(got.video, exact.video, atol=1e-4, rtol=1e-4)  # order of sums
                torch.testing.assert_close(got.audio, exact.audio, atol=1e-4, rtol=1e-4)
            print(f"depth {depth}, size {size}: {len(graphs)} graphs", file=sys.stderr)
            starts = len(forward.cold_starts)
            if size == 0:
                after_first = starts
        assert list(model.state_dict()) == names
        uncompile_blocks(model)
        plain = list(steps(model, *pairs[0]))[0].video
        assert torch.equal(plain, wanted[0][0].video)
    assert after_first and starts == after_first, "a later size was compiled anew"
    assert all(start.seconds > 0 for start in forward.cold_starts)
    counts.append(len(graphs))
    if backend == "count":
        assert not any("sort" in str(node.target) for graph in graphs for node in graph.graph.nodes)
        compiled = sum(int(start.what.split()[-2]) for start in forward.cold_starts)
        assert compiled == len(graphs), (compiled, len(graphs))
print(*counts)
"""


def run_script(*arguments):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [int(number) for number in ran.stdout.split()]


@pytest.mark.parametrize("generation", ["2.0", pytest.param("2.3", marks=pytest.mark.slow)])
def test_all_blocks_and_sizes_share_the_graphs_of_the_first(generation):
    """Every piece is one graph, and neither depth nor another number of tokens adds to their number."""
    shallow, deep = run_script(generation, "2,5", "count")
    assert shallow == deep
    assert 0 < shallow < 40


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_compiled_blocks_give_what_plain_ones_give(generation):
    run_script(generation, "3", "inductor")


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ResourceError, match="Linear has no blocks in 'transformer_blocks'"):
        compile_blocks(nn.Linear(2, 2))


def test_the_pieces_of_every_block_are_compiled_once_for_all(monkeypatch):
    """One compiled function stands behind a piece of all layers, so that they share what it compiled."""
    made = []

    def note(function, **options):
        made.append((function, options))
        return lambda *given: function(*given)

    monkeypatch.setattr(torch, "compile", note)
    network = transformer("2.3")
    assert compile_blocks(network, backend="eager") == 2
    assert len(made) == 6
    assert all(options["backend"] == "eager" and options["dynamic"] for _, options in made)
    layers = [block.attn1 for block in network.transformer_blocks]
    assert layers[0].combine.__func__ is layers[1].combine.__func__
    assert [layer.combine.__self__ for layer in layers] == layers
    copied = copy.deepcopy(network)
    assert copied.transformer_blocks[0].ff.forward.__self__ is copied.transformer_blocks[0].ff
    uncompile_blocks(network)
    assert "combine" not in vars(layers[0])


def test_a_cold_start_is_what_the_first_call_took_longer():
    calls = []

    def call(x):
        calls.append(x)
        if len(calls) == 1:
            time.sleep(0.05)
        return x + 1

    result, start = cold_start("waiting", call, 1)
    assert result == 2
    assert start.what == "waiting"
    assert 0.02 < start.seconds < 5
    assert not torch.cuda.is_initialized()
