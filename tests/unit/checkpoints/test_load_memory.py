"""Peak memory of loading, measured in a process of its own on files of more than a gigabyte."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from golden_cases import GOLDEN
from soundstage.checkpoints.save import write_safetensors
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.model import AVTransformer

# The official widths; each block has 387 million parameters.
SECTION = {
    **json.loads((GOLDEN / "manifest.json").read_text())["checkpoints"]["ltx2.3"]["config"]["transformer"],
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "in_channels": 128,
    "out_channels": 128,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
}

SCRIPT = """
import json, resource, sys, threading, time
import torch
from pathlib import Path
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.load import load_module
from soundstage.checkpoints.reading import Placement
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.model import AVTransformer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

checkpoint = open_checkpoint(Path(sys.argv[1]))
config = TransformerConfig.from_header(checkpoint.section("transformer"))
dtype = getattr(torch, sys.argv[2])
begin = time.perf_counter()
module = load_module(
    lambda: AVTransformer(config), checkpoint.part("transformer"), what="it", placement=Placement(dtype=dtype)
)
seconds = time.perf_counter() - begin
kept = sum(t.numel() * t.element_size() for t in module.state_dict().values())
print(json.dumps({"kept": kept, "peak": peak(), "seconds": seconds}))
"""


def write_large(path, num_layers):
    section = {**SECTION, "num_layers": num_layers}
    with torch.device("meta"):
        network = AVTransformer(TransformerConfig.from_header(section))
    value = torch.ones(1, dtype=torch.bfloat16)
    tensors = {f"model.diffusion_model.{n}": value.expand(t.shape) for n, t in network.state_dict().items()}
    write_safetensors(path, tensors, {"config": {"transformer": section}, "model_version": "2.3.0"})


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "num_layers"), [("bfloat16", 2), ("float32", 1)])
def test_peak_memory_of_the_process_is_what_is_kept_and_little_more(tmp_path, dtype, num_layers):
    path = tmp_path / "large.safetensors"
    write_large(path, num_layers)
    assert path.stat().st_size > 10**9
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), dtype], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    ratio = measured["peak"] / measured["kept"]  # Python and torch themselves included
    print(f"{dtype}: {measured}, {ratio:.3f} x")
    assert ratio <= 1.15


QUANTISING = """
import json, sys
import torch
from pathlib import Path
from soundstage.pipelines.loading import load_components
from soundstage.pipelines.placing import Placing

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
placing = Placing(quantize=sys.argv[2])
components = load_components(
    Path(sys.argv[1]), components=("transformer",), dtype=torch.bfloat16, placing=placing
)
kept = sum(t.numel() * t.element_size() for t in components.transformer.state_dict().values())
print(json.dumps({"kept": kept, "peak": memory("VmHWM") - before}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "int8", "int4"])
def test_quantising_while_loading_takes_what_is_kept_and_little_more(tmp_path, name):
    path = tmp_path / "large.safetensors"
    write_large(path, 2)
    done = subprocess.run(
        [sys.executable, "-c", QUANTISING, str(path), name], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    ratio = measured["peak"] / measured["kept"]  # the file is twice to four times as large as what is kept
    print(f"{name}: {measured}, {ratio:.3f} x")
    assert ratio <= 1.15


CONVERTING = """
import json, sys
import torch
from pathlib import Path
from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.pipelines.loading import load_checkpoint
from soundstage.pipelines.placing import Placing

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

checkpoint, before = open_checkpoint(Path(sys.argv[1])), memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
components = load_checkpoint(
    checkpoint,
    components=("transformer",),
    dtype=torch.bfloat16,
    placing=Placing(quantize="int8"),
    mapped=(keymap.TRANSFORMER,),
)
sizes = {n: t.numel() * t.element_size() for n, t in components.transformer.state_dict().items()}
blocks = sum(size for name, size in sizes.items() if name.startswith("transformer_blocks."))
print(json.dumps({"blocks": blocks, "outer": sum(sizes.values()) - blocks, "peak": memory("VmHWM") - before}))
"""


@pytest.mark.slow
def test_converting_what_stays_on_disk_takes_little_of_the_memory_that_keeping_it_would(tmp_path):
    path, measured = tmp_path / "large.safetensors", []
    write_large(path, 2)
    for _ in range(2):  # converted, and found converted
        done = subprocess.run(
            [sys.executable, "-c", CONVERTING, str(path)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"SOUNDSTAGE_CONVERTED": str(tmp_path / "converted")},
        )
        measured.append(json.loads(done.stdout))
    print(measured)
    converting, mapping = ((run["peak"] - run["outer"]) / run["blocks"] for run in measured)
    assert converting <= 0.3  # of two blocks: the largest layer, what is read of it, and Python's own
    assert mapping <= 0.15


SHARING = """
import json, sys
import torch
import torch.distributed.fsdp  # its own memory is not the model's
from pathlib import Path
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.pipelines.loading import load_checkpoint
from soundstage.runtime.distributed import join_team
from soundstage.runtime.sharding import WeightShares

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def read():
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))

checkpoint = open_checkpoint(Path(sys.argv[1]))
with join_team(torch.device("cpu"), shards_weights=True) as team:
    before, read_before = memory("VmRSS"), read()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    components = load_checkpoint(
        checkpoint, components=("transformer",), dtype=torch.bfloat16, shares=WeightShares(team)
    )
    peak = memory("VmHWM") - before
    kept = sum(weight.to_local().nbytes for weight in components.transformer.parameters())
    print(json.dumps({"kept": kept, "peak": peak, "read": read() - read_before}))
"""


@pytest.mark.slow
def test_processes_that_share_weights_read_and_hold_no_more_than_their_share(tmp_path):
    path = tmp_path / "large.safetensors"
    write_large(path, 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, str(path)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    measured = [json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in processes]
    size = path.stat().st_size
    print(f"file of {size}: {measured}, {[m['peak'] / m['kept'] for m in measured]} x")
    for process in measured:
        assert process["kept"] == pytest.approx(size / 2, rel=0.01)
        assert process["peak"] <= 1.15 * process["kept"]
        assert process["read"] <= 1.05 * process["kept"]
