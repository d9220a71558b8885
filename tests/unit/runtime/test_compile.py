"""`torch.compile` of blocks. What is compiled runs in a process of its own, without the shape hook."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from soundstage.core.errors import ResourceError
from soundstage.runtime.compile import cold_start, compile_blocks

TESTS = Path(__file__).parents[2]
SCRIPT = """
import sys
from dataclasses import replace
import torch
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation
from soundstage.runtime.compile import compile_blocks
from transformer_samples import config, inputs, transformer

shape, model = config("2.0"), transformer("2.0")
counts = []
def count(graph, _):
    counts.append(graph)
    return graph.forward

branches = (Branch(), Branch(perturbation=Perturbation(skip_a2v="all")))

def call(video, audio):
    return model(video, audio, passes=Passes(branches=branches))

def longer(stream, by):
    return replace(stream, latents=stream.latents.repeat(1, by, 1), timesteps=stream.timesteps.repeat(1, by),
        positions=stream.positions.repeat(1, 1, by, 1))

video, audio = inputs(shape, batch=1)
pairs = [(longer(video, by), longer(audio, by)) for by in (1, 2, 3)]
with torch.no_grad():
    wanted = [call(*pair) for pair in pairs]
    names = list(model.state_dict())
    compile_blocks(model, backend=count)
    for index, (pair, want) in enumerate(zip(pairs, wanted)):
        got = call(*pair)
        torch.testing.assert_close(got.video, want.video)
        torch.testing.assert_close(got.audio, want.audio)
        print(f"size {index}: {len(counts)} graphs", file=sys.stderr)
        if index == 1:
            after_two = len(counts)
assert counts, "nothing was compiled"
assert len(counts) == after_two, "a third size was compiled anew"
assert list(model.state_dict()) == names
"""


@pytest.mark.slow
def test_compiled_blocks_are_exact_at_every_size_and_compiled_once():
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ResourceError, match="Linear has no blocks in 'transformer_blocks'"):
        compile_blocks(nn.Linear(2, 2))


def test_every_block_is_compiled_when_it_is_called(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    network = nn.Module()
    network.transformer_blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert compile_blocks(network, backend="eager") == 3
    assert [block for block, _ in compiled] == list(network.transformer_blocks.children())
    assert compiled[0][1] == {"backend": "eager", "dynamic": True}


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
