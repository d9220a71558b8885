"""What rings: damped sines, many at once, and their place between left and right.

Source: modal synthesis of contact sounds, van den Doel & Pai 1998, "The sounds of physical shapes".
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import Waveform

BLOCK = 128  # samples
NYQUIST_SHARE = 0.45  # of the sample rate, above which a mode would fold back and is left out


class Mode(NamedTuple):
    """One damped sine."""

    frequency: float  # Hz, or a ratio to a pitch
    weight: float
    decay: float  # seconds to 1/e

    def per_sample(self, sample_rate: int) -> tuple[float, float, float]:
        """Return cycles and nepers per sample, and the weight: 0 for what is too high for the sample rate."""
        cycles = self.frequency / sample_rate
        return cycles, 1 / (self.decay * sample_rate), self.weight if cycles < NYQUIST_SHARE else 0.0


SILENT_MODE = (0.0, 1.0, 0.0)  # per sample; fills up the rows of what has fewer modes


def ring(
    table: Float[Tensor, "n modes 3"], num_blocks: int, device: torch.device
) -> Float[Tensor, "n samples"]:
    """Sum the modes of each row, from its first sample on.

    A damped sine is the imaginary part of exp(z n), and exp(z (BLOCK a + b)) = exp(z BLOCK a) exp(z b): two
    short tables and one matrix product replace an exponential and a sine per sample and mode.

    Args:
        table: Rows of `Mode.per_sample`, in float64.
        num_blocks: Length of the result in blocks of `BLOCK` samples.
    """
    cycles, nepers, weights = table.to(device, torch.float32).unbind(2)
    block_cycles = (table[..., 0] * BLOCK).frac().to(device, torch.float32)  # whole turns dropped in float64

    def spiral(turns: Tensor, damping: Tensor, count: int) -> Tensor:
        index = torch.arange(count, device=device, dtype=torch.float32)
        return torch.polar(torch.exp(-damping[..., None] * index), 2 * math.pi * turns[..., None] * index)

    coarse = spiral(block_cycles, nepers * BLOCK, num_blocks) * weights[..., None]  # (n, modes, blocks)
    fine = spiral(cycles, nepers, BLOCK)  # (n, modes, BLOCK)
    first = torch.cat((coarse.real, coarse.imag), 1).mT  # (n, blocks, 2 modes)
    second = torch.cat((fine.imag, fine.real), 1)  # (n, 2 modes, BLOCK)
    return torch.bmm(first, second).flatten(1)


def add_panned(waveform: Waveform, row: int, start: int, grain: Float[Tensor, " heard"], pan: float) -> None:
    """Add a sound to one clip from a sample on, at equal power.

    Args:
        pan: 0 = left, 1 = right.
    """
    heard = grain[: waveform.shape[-1] - start]
    angle = pan * math.pi / 2
    waveform[row, 0, start : start + len(heard)].add_(heard, alpha=math.cos(angle))
    waveform[row, 1, start : start + len(heard)].add_(heard, alpha=math.sin(angle))
