"""The formats by name, and how a network's layers are given one.

Only the linear layers inside blocks are quantised: they are 98 % of the weights, and each is one of many that
share the error. What stands alone (projections in and out, noise levels, norms, tables, gates per head) stays
exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.config import nearest
from soundstage.core.errors import RequestError
from soundstage.runtime.quantization import fp8, int4, int8
from soundstage.runtime.quantization.layer import QuantizedLinear

NONE = "none"
GATES = "to_gate_logits"  # a handful of outputs, each of which scales a whole head
ROWS_AT_ONCE = 1024  # of a weight in memory; bounds what rounding needs beside the weights


@runtime_checkable
class MakesLayer(Protocol):
    """What makes an empty quantised layer."""

    def __call__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> QuantizedLinear:
        """Make one."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One format: its layer, its size, and what it costs in accuracy."""

    title: str
    layer: MakesLayer
    weight_error: Callable[[Float[Tensor, "outputs inputs"]], Float[Tensor, "outputs inputs"]]
    bits: float  # per weight, scales included, at the widths of the released models
    golden_error: float  # bound of the relative error of velocities on the recorded cases
    multiplies: bool = False  # faster than bfloat16 where the device can

    def make(
        self, linear: nn.Linear, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> QuantizedLinear:
        """Make the empty twin of a layer, where the layer is unless told otherwise."""
        return self.layer(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            dtype=dtype,
            device=linear.weight.device if device is None else device,
        )


QUANTIZATIONS: Mapping[str, Quantization] = {
    "fp8": Quantization(
        title="8-bit floats, multiplied as such",
        layer=fp8.Fp8Linear,
        weight_error=fp8.weight_error,
        bits=8.01,
        golden_error=0.065,
        multiplies=True,
    ),
    "fp8-bf16": Quantization(
        title="8-bit floats, widened for use",
        layer=partial(fp8.Fp8Linear, multiplies=False),
        weight_error=fp8.weight_error,
        bits=8.01,
        golden_error=0.062,
    ),
    "int8": Quantization(
        title="8-bit integers, widened for use",
        layer=int8.Int8Linear,
        weight_error=int8.weight_error,
        bits=8.01,
        golden_error=0.011,
    ),
    "int8-int8": Quantization(
        title="8-bit integers, multiplied as such",
        layer=partial(int8.Int8Linear, multiplies=True),
        weight_error=int8.weight_error,
        bits=8.01,
        golden_error=0.016,
        multiplies=True,
    ),
    "int4": Quantization(
        title="4-bit integers in groups of 64, widened for use",
        layer=int4.Int4Linear,
        weight_error=int4.weight_error,
        bits=4.5,
        golden_error=0.1,
    ),
}


def find_quantization(name: str) -> Quantization:
    """Find a format by name.

    Raises:
        RequestError: There is none of that name.
    """
    if name not in QUANTIZATIONS:
        names = [NONE, *QUANTIZATIONS]
        raise RequestError(f"unknown format {name!r}{nearest(name, names)}; there is {', '.join(names)}")
    return QUANTIZATIONS[name]


def quantizable(module: nn.Module, *, inside: str) -> dict[str, nn.Linear]:
    """List the layers that are quantised: the plain linear ones below `inside`, without gates.

    Args:
        inside: Name of the list of blocks, such as "transformer_blocks".
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and name.startswith(f"{inside}.")
        and not name.endswith(GATES)
        and layer.in_features % 2 == 0
    }


@torch.no_grad()
def quantize(module: nn.Module, name: str, *, inside: str) -> None:
    """Quantise a network that has its weights, one layer after another.

    Raises:
        RequestError: There is no format of that name.
    """
    chosen = find_quantization(name)
    for path, layer in quantizable(module, inside=inside).items():
        twin = chosen.make(layer, layer.weight.dtype)
        twin.bias = layer.bias
        take_weight(twin, layer.weight.detach())
        module.set_submodule(path, twin)


@torch.no_grad()
def take_weight(layer: QuantizedLinear, weight: Float[Tensor, "outputs inputs"]) -> None:
    """Replace the whole weight of a quantised layer, in place."""
    for start in range(0, len(weight), ROWS_AT_ONCE):
        layer.take_rows(start, weight[start : start + ROWS_AT_ONCE])
