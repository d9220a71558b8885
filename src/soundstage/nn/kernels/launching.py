"""How a Triton kernel is started."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import triton
from torch import Tensor

WIDE = 4096  # columns from which a program is given twice the warps


@runtime_checkable
class Kernel(Protocol):
    """What `triton.jit` makes: by a number of programs it gives what starts them."""

    def __getitem__(self, grid: tuple[int]) -> Callable[..., object]: ...


def dense_rows(x: Tensor) -> Tensor:
    """Bring the numbers of a row side by side; rows may be anywhere."""
    return x if x.stride(-1) == 1 else x.contiguous()


def launch(
    kernel: Kernel,
    programs: int,
    columns: int,
    x: Tensor,
    *arguments: Tensor | int | float,
    **constants: int,
) -> None:
    """Start a kernel where its first argument is, which need not be the current device.

    A program is as wide as a power of two; products may be fused into sums.
    """
    block = triton.next_power_of_2(columns)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # PyTorch leaves it so
        kernel[(programs,)](
            x,
            *arguments,
            **constants,
            BLOCK=block,
            num_warps=8 if block >= WIDE else 4,
            enable_fp_fusion=True,
        )
