"""What plans are made from, of a checkpoint."""

from typing import Any

import torch

from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.pipelines.forecast import Setup
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.sketch import text_tower
from soundstage.runtime.rates import known_gpu


def setup_of(
    checkpoint: Checkpoint,
    *,
    gpu: str = "H100",
    placing: Placing | None = None,
    dtype: torch.dtype = torch.float32,
    **values: Any,
) -> Setup:
    """Return that of a GPU which is known by name, with the text encoder that comes with the model."""
    return Setup(
        checkpoint=checkpoint,
        tower=text_tower(checkpoint, None),
        placing=placing or Placing(),
        rates=known_gpu(gpu),
        dtype=dtype,
        **values,
    )
