"""How exactly float32 is computed: PyTorch lets GPUs round to TF32 unless told otherwise.

cuDNN's convolutions take TF32 by default: 10 bits of mantissa instead of 23. Pictures bear that; waveforms,
with 90 dB between loud and soft, do not, and sound is computed in float32 for its precision.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 as float32, convolutions and matrix products alike; afterwards all is as it was.

    Source: PyTorch, "CUDA semantics", TensorFloat-32 on Ampere and later devices.
    """
    cudnn: Any = (
        torch.backends.cudnn
    )  # its switches are made at run time, which hides them from type checkers
    places = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before, allowed = [place.fp32_precision for place in places], _allows_tf32()
    try:
        # PyTorch has an older and a newer switch, and refuses to read the older one once the newer was used.
        # The older is used where it can be read, so that code which reads it goes on working inside.
        if allowed is not None:
            cudnn.allow_tf32 = False
        for place in places:
            if place.fp32_precision == "tf32":
                place.fp32_precision = "ieee"
        yield
    finally:
        if allowed is not None:
            cudnn.allow_tf32 = allowed
        for place, precision in zip(places, before, strict=True):
            if place.fp32_precision != precision:
                place.fp32_precision = precision


def _allows_tf32() -> bool | None:
    """Read cuDNN's older switch; None where the newer one was used."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None
