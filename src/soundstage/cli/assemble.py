"""`soundstage assemble`: join trained parts into one model file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class AssembleCommand:
    """Join trained parts into one model file in the official layout.

    Example: soundstage assemble runs/*/model.safetensors --out my-model.safetensors
    """

    parts: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files that `soundstage train` wrote; or a whole model, to add LoRAs into it."""
    out: Path
    """The model file."""
    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """LoRA to add into the weights for good: PATH[:STRENGTH]; can be given several times."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Number format of matrices and kernels."""

    def run(self) -> int:
        """Join the parts."""
        import torch

        from soundstage.training.export import assemble

        assemble(self.parts, self.out, getattr(torch, self.dtype), self.lora)
        return 0
