"""Add LoRAs into a model's weights for good, so that a file of its own can be written."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from soundstage.checkpoints.keymap import CONNECTORS, TRANSFORMER, locate, official_name
from soundstage.checkpoints.layer_table import Shape
from soundstage.checkpoints.load_lora import LoraReader
from soundstage.checkpoints.lora import open_lora
from soundstage.checkpoints.lora_fit import check_fit
from soundstage.checkpoints.versions.embedded import EMBEDDED
from soundstage.core.errors import RequestError
from soundstage.nn.lora import Addition, fuse
from soundstage.pipelines.lora_option import LoraOption
from soundstage.pipelines.loras import find_lora


@torch.no_grad()
def add_loras(tensors: dict[str, Tensor], loras: Sequence[str]) -> None:
    """Replace weights, in place of the mapping, by those with LoRAs added; these become float32.

    Args:
        tensors: Of a model that this project trained, by official name.
        loras: As a request names them: "PATH[:STRENGTH]".

    Raises:
        CheckpointError: A LoRA is missing, or adapts layers that the model does not have.
        RequestError: A LoRA is named wrongly, or for one stage.
    """
    layers, text_layers = _layers(tensors, TRANSFORMER), _layers(tensors, CONNECTORS)
    additions: dict[str, list[Addition]] = {}
    for text in loras:
        option = LoraOption.parse(text)
        if option.stage is not None:
            raise RequestError(f"lora {text!r} is for one stage, and weights have none; leave out @")
        lora = open_lora(find_lora(option.path), names=layers)
        check_fit(lora, layers, model="the joined model", generation=EMBEDDED, text_layers=text_layers)
        for part, adapted in ((TRANSFORMER, lora.layers), (CONNECTORS, lora.text_layers)):
            with LoraReader(replace(lora, layers=adapted)) as reader:
                for layer in adapted:
                    low_rank = reader.read(layer)
                    assert low_rank is not None
                    name = official_name(part, f"{layer}.weight")
                    additions.setdefault(name, []).append(Addition(low_rank, option.strength))
    for name, parts in additions.items():
        tensors[name] = fuse(tensors[name].float(), parts)


def _layers(tensors: dict[str, Tensor], part: str) -> dict[str, Shape]:
    """List the matrices of one part, by our names."""
    shapes = {}
    for name, tensor in tensors.items():
        located = locate(name)
        if located is not None and located[0] == part and name.endswith(".weight") and tensor.ndim == 2:
            shapes[located[1].removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
    return shapes
