"""What a format of quantised weights costs and saves in one layer, as a table for docs/benchmarks.md.

python benchmarks/formats.py [--device cpu|cuda] [--tokens 256] [--inputs 2048] [--outputs 8192] [--rounds 15]

A linear layer of random weights in every format of ours, and in torchao's where that is installed, in turns
with the same layer as it is, in float32 and in bfloat16: median of paired ratios of time, and how far outputs
lie from those of float32 without a format. Of a CPU, processor seconds of one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from soundstage.runtime.quantization.registry import QUANTIZATIONS, quantize

Layer = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--outputs", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    print("| type | format | bits per weight | time / none | error of outputs |")
    print("|---|---|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        plain = nn.Linear(options.inputs, options.outputs).to(options.device)
        x = torch.randn(options.tokens, options.inputs, device=options.device)
        with torch.no_grad():
            exact = plain(x)
            layers = {**ours(plain.to(dtype)), **theirs(plain)}
            for name, (layer, bits) in layers.items():
                ratio = time_against(layer, plain, x.to(dtype), options.rounds)
                error = float((layer(x.to(dtype)).float() - exact).norm() / exact.norm())
                number = str(dtype).removeprefix("torch.")
                print(f"| {number} | {name} | {bits} | {ratio:.2f} | {100 * error:.2f} % |", flush=True)


def ours(plain: nn.Linear) -> dict[str, tuple[Layer, str]]:
    """Make the layer in each of our formats; with bits per weight."""
    made: dict[str, tuple[Layer, str]] = {"none": (plain, str(plain.weight.element_size() * 8))}
    for name, format_ in QUANTIZATIONS.items():
        box = nn.ModuleDict({"blocks": nn.ModuleList([deepcopy(plain)])})
        quantize(box, name, inside="blocks")
        made[name] = box.get_submodule("blocks.0"), f"{format_.bits:g}"
    return made


def theirs(plain: nn.Linear) -> dict[str, tuple[Layer, str]]:
    """Make the layer in torchao's formats that are like ours and run here."""
    try:
        import torchao.quantization as ao
        from torchao.quantization.granularity import PerGroup
    except ImportError:
        return {}
    configs = {
        "torchao float8, weights": (ao.Float8WeightOnlyConfig, {}),
        "torchao int8, weights": (ao.Int8WeightOnlyConfig, {}),
        "torchao int8, inputs too": (ao.Int8DynamicActivationInt8WeightConfig, {}),
        "torchao int4 in groups of 64": (
            ao.IntxWeightOnlyConfig,
            {"weight_dtype": torch.int4, "granularity": PerGroup(64)},
        ),
    }
    made: dict[str, tuple[Layer, str]] = {}
    for name, (config, settings) in configs.items():
        network = nn.Sequential(deepcopy(plain))
        try:
            ao.quantize_(network, config(**settings))
            network(torch.zeros(32, plain.in_features, dtype=plain.weight.dtype, device=plain.weight.device))
        except (RuntimeError, AssertionError, ImportError) as error:
            print(f"{name} does not run here: {error}".splitlines()[0], flush=True)
            continue
        made[name] = network, ""
    return made


def time_against(layer: Layer, plain: Layer, x: Tensor, rounds: int) -> float:
    """Return the median ratio of times, measured in turns, after one round that does not count."""
    ratios = [seconds(layer, x) / seconds(plain, x) for _ in range(rounds + 1)]
    return statistics.median(ratios[1:])


def seconds(layer: Layer, x: Tensor) -> float:
    if x.device.type == "cpu":
        began = time.process_time()
        layer(x)
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    layer(x)
    torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
