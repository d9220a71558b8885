"""Flags that several commands share."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from soundstage.pipelines.placing import OffloadName, Placing, QuantizeName

Repeated = tyro.conf.UseAppendAction[tuple[str, ...]]  # a flag that may be given several times


@dataclass(frozen=True, kw_only=True)
class PlacingFlags:
    """Where and in which format the weights are to live."""

    quantize: QuantizeName | None = None
    """Format of the transformer's weights; as the file has them by default."""
    quantize_text: QuantizeName | None = None
    """The same for the text encoder."""
    quantize_skip: Annotated[Repeated, tyro.conf.arg(metavar="LAYER")] = ()
    """Layers of the transformer that are not quantised, repeatable: transformer_blocks.0, '*.ff' ..."""
    quantize_text_skip: Annotated[Repeated, tyro.conf.arg(metavar="LAYER")] = ()
    """The same for the text encoder: model.layers.0 ..."""
    offload: OffloadName = "auto"
    """Where weights wait that do not fit: auto, none (all must fit), stream (in host memory), disk."""
    vram: str | None = None
    """Device memory to use, such as 16GB; what is free by default, or all of a GPU that is not here."""

    def placing(self) -> Placing:
        """Check them.

        Raises:
            RequestError: A value is not allowed.
        """
        return Placing(**vars(self))
