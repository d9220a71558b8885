"""Decide for every layer of a network without weights how it will keep the one it is given."""

from collections.abc import Mapping

import torch
from torch import nn

from soundstage.nn.gguf_formats import BLOCK_FORMATS
from soundstage.runtime.quantization.fp8 import Fp8Linear, StoredFp8Linear
from soundstage.runtime.quantization.gguf import GgufLinear
from soundstage.runtime.quantization.registry import NONE, find_quantization, quantizable

FP8 = "F8_E4M3"


def place_twins(
    module: nn.Module,
    stored: Mapping[str, str],
    name: str | None,
    *,
    inside: str,
    dtype: torch.dtype,
    device: torch.device,
    input_scales: frozenset[str] = frozenset(),
    skipped: frozenset[str] = frozenset(),
) -> None:
    """Put empty layers that keep codes in the places of plain ones.

    Args:
        stored: Number formats of the file by the name of the tensor.
        name: The format wanted; None keeps what the file has. Codes of the file that are in the wanted format
            already are kept as they are, not rounded a second time.
        inside: Name of the list of blocks.
        dtype: In which the weights are used.
        device: Where the layers are.
        input_scales: Layers for whose inputs the file has a fixed scale.
        skipped: Layers that stay plain, whatever the file has.

    Raises:
        RequestError: There is no format of that name.
    """
    chosen = None if name in (None, NONE) else find_quantization(name)
    for path, layer in quantizable(module, inside=inside).items():
        if path in skipped:
            continue
        kind = stored.get(f"{path}.weight", "")
        has_bias = layer.bias is not None
        if kind == FP8 and (name is None or (chosen is not None and name.startswith("fp8"))):
            # Without being asked, inputs are not rounded: that costs quality.
            multiplies = chosen is not None and chosen.multiplies
            twin: Fp8Linear | GgufLinear = StoredFp8Linear(
                layer.in_features,
                layer.out_features,
                bias=has_bias,
                dtype=dtype,
                device=device,
                multiplies=multiplies,
                has_input_scale=path in input_scales,
            )
            module.set_submodule(path, twin)
        elif kind in BLOCK_FORMATS and name is None:
            sizes = (layer.in_features, layer.out_features)
            twin = GgufLinear(*sizes, kind=kind, bias=has_bias, dtype=dtype, device=device)
            module.set_submodule(path, twin)
        elif chosen is not None:
            module.set_submodule(path, chosen.make(layer, dtype, device))
