"""Read the tensors of a LoRA, one layer at a time: the file may be larger than what should be in memory."""

from types import TracebackType

import torch
from torch import Tensor

from soundstage.checkpoints.lora import LoraFile
from soundstage.checkpoints.reading import Placement, TensorReader
from soundstage.nn.lora import LowRank

CPU = torch.device("cpu")


class LoraReader:
    """Reads the layers of one file; use it as a context, which closes the file."""

    def __init__(self, lora: LoraFile) -> None:
        self._layers = lora.layers
        self._reader = TensorReader(Placement())

    def __enter__(self) -> "LoraReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def read(self, name: str, device: torch.device = CPU) -> LowRank | None:
        """Read what the file holds for one layer, by official name; None if it leaves the layer alone.

        Args:
            device: Where to: layers of one network may be on several.

        Raises:
            CheckpointError: The file ends early or its number format is unknown.
        """
        layer = self._layers.get(name)
        if layer is None:
            return None
        magnitude: Tensor | None = None
        if layer.magnitude is not None:
            magnitude = self._reader.read(layer.magnitude, device=device).flatten()
        return LowRank(
            down=self._reader.read(layer.down, device=device),
            up=self._reader.read(layer.up, device=device),
            scale=layer.scale,
            magnitude=magnitude,
        )
