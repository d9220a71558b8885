"""What in a network's place takes weights in another form, for the parts of a model that are quantised."""

from collections.abc import Mapping

import torch
from torch import nn

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.load import Adapt, Placement
from soundstage.pipelines.placing import Placing
from soundstage.runtime.quantization.placing import place_twins

BLOCKS = {keymap.TRANSFORMER: "transformer_blocks", keymap.TEXT_TOWER: "model.layers"}  # what is quantised
INPUT_SCALE = ".input_scale"


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
        )

    return adapt
