"""How exactly float32 is computed: PyTorch lets GPUs round to TF32 unless told otherwise.

cuDNN's convolutions take TF32 by default: 10 bits of mantissa instead of 23. Pictures bear that; waveforms,
with 90 dB between loud and soft, do not, and sound is computed in float32 for its precision. As the switches
are those of the whole process and sound is decoded beside the picture, the picture is decoded without TF32,
too: else it would depend on which of the two is done first. In bfloat16 none of this changes anything.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _Scopes:
    """Those that are open in all threads: the first turns the switches, the last turns them back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._turn_back: Callable[[], None] | None = None

    def open(self) -> None:
        """Begin a scope."""
        with self._lock:
            if self._turn_back is None:
                self._turn_back = _turn_off_tf32()
            self._count += 1

    def close(self) -> None:
        """End a scope."""
        with self._lock:
            self._count -= 1
            if not self._count and self._turn_back is not None:
                self._turn_back()
                self._turn_back = None


_scopes = _Scopes()


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 as float32, convolutions and matrix products alike; afterwards all is as it was.

    Source: PyTorch, "CUDA semantics", TensorFloat-32 on Ampere and later devices.
    """
    _scopes.open()
    try:
        yield
    finally:
        _scopes.close()


def _turn_off_tf32() -> Callable[[], None]:
    """Return what makes it as it was."""
    cudnn: Any = (
        torch.backends.cudnn
    )  # its switches are made at run time, which hides them from type checkers
    places = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before, allowed = [place.fp32_precision for place in places], _allows_tf32()

    def turn_back() -> None:
        if allowed is not None:
            cudnn.allow_tf32 = allowed
        for place, precision in zip(places, before, strict=True):
            if place.fp32_precision != precision:
                place.fp32_precision = precision

    # PyTorch has an older and a newer switch, and refuses to read the older one once the newer was used.
    # The older is used where it can be read, so that code which reads it goes on working inside.
    try:
        if allowed is not None:
            cudnn.allow_tf32 = False
        for place in places:
            if place.fp32_precision == "tf32":
                place.fp32_precision = "ieee"
    except BaseException:
        turn_back()
        raise
    return turn_back


def _allows_tf32() -> bool | None:
    """Read cuDNN's older switch; None where the newer one was used."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None
