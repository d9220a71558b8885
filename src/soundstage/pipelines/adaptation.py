"""What in a network's place takes weights in another form, for the parts of a model that are quantised."""

from collections.abc import Mapping

import torch
from torch import nn

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.load import Adapt
from soundstage.checkpoints.reading import Placement
from soundstage.pipelines.placing import Placing
from soundstage.runtime.quantization.placing import place_twins
from soundstage.runtime.quantization.registry import GATES
from soundstage.runtime.quantization.skipping import skipped_layers

BLOCKS = {keymap.TRANSFORMER: "transformer_blocks", keymap.TEXT_TOWER: "model.layers"}  # what is quantised
WEIGHT, INPUT_SCALE = ".weight", ".input_scale"


def is_codable(name: str, tensor: StoredTensor, inside: str) -> bool:
    """Tell whether a tensor is a weight that is quantised, if any is.

    Args:
        inside: Name of the list of blocks; empty where nothing is quantised.
    """
    return (
        inside != ""
        and name.startswith(f"{inside}.")
        and name.endswith(WEIGHT)
        and len(tensor.entry.shape) == 2
        and not name.endswith(f"{GATES}{WEIGHT}")
    )


def skipped(part: str, tensors: Mapping[str, StoredTensor], placing: Placing) -> frozenset[str]:
    """Find the layers of a part that stay exact.

    Raises:
        RequestError: A pattern names none.
    """
    option = "quantize_skip" if part == keymap.TRANSFORMER else "quantize_text_skip"
    names = [n.removesuffix(WEIGHT) for n, tensor in tensors.items() if is_codable(n, tensor, BLOCKS[part])]
    return skipped_layers(names, getattr(placing, option), option=option)


def adaptation(part: str, placing: Placing) -> Adapt | None:
    """Return what puts quantised layers into a part; None where nothing is ever quantised."""
    if part not in BLOCKS:
        return None
    name = placing.quantize if part == keymap.TRANSFORMER else placing.quantize_text

    def adapt(module: nn.Module, tensors: Mapping[str, StoredTensor], place: Placement) -> None:
        fixed = [n.removesuffix(INPUT_SCALE) for n in tensors if n.endswith(INPUT_SCALE)]
        place_twins(
            module,
            {name: tensor.entry.dtype for name, tensor in tensors.items()},
            name,
            inside=BLOCKS[part],
            dtype=place.dtype or torch.bfloat16,
            device=torch.device(place.device),
            input_scales=frozenset(fixed),
            skipped=skipped(part, tensors, placing),
        )

    return adapt
