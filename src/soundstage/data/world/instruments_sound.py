"""Sound of struck things: each blow is a handful of damped sines that begin exactly at its time.

Source: modal synthesis of contact sounds, van den Doel & Pai 1998, "The sounds of physical shapes".
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import Waveform
from soundstage.data.world.bounce_sound import Mode
from soundstage.data.world.limiter import limit

BLOCK = 128  # samples
SILENT = 7.0  # decay times after which a mode is 61 dB down
FADE = 0.02  # s, from what is left then to nothing
NYQUIST_SHARE = 0.45  # of the sample rate, above which a mode is left out


class Blow(NamedTuple):
    """One strike on something that rings."""

    row: int  # of the batch
    time: float  # s
    pan: float  # 0 = left, 1 = right
    level: float  # peak amplitude of the sum of the modes at most, before panning
    modes: tuple[Mode, ...]


def scaled(modes: Sequence[Mode], pitch: float) -> tuple[Mode, ...]:
    """Play modes higher or lower: frequencies that are given as ratios become Hz."""
    return tuple(mode._replace(frequency=mode.frequency * pitch) for mode in modes)


def mix(
    blows: Sequence[Blow],
    batch_size: int,
    *,
    duration: float,
    sample_rate: int,
    device: torch.device | str = "cpu",
) -> Waveform:
    """Add all blows up to stereo clips, panned at equal power."""
    device = torch.device(device)
    num_samples = round(duration * sample_rate)
    waveform = torch.zeros(batch_size, 2, num_samples, device=device)
    blows = [blow for blow in blows if round(blow.time * sample_rate) < num_samples]
    if blows:
        for grain, blow in zip(_grains(blows, duration, sample_rate, device), blows, strict=True):
            start = round(blow.time * sample_rate)
            heard = _faded(grain, blow, sample_rate)[: num_samples - start]
            angle = blow.pan * math.pi / 2
            waveform[blow.row, 0, start : start + len(heard)].add_(heard, alpha=math.cos(angle))
            waveform[blow.row, 1, start : start + len(heard)].add_(heard, alpha=math.sin(angle))
    return limit(waveform)


def _grains(
    blows: Sequence[Blow], duration: float, sample_rate: int, device: torch.device
) -> Float[Tensor, "n samples"]:
    """Sum of damped sines of each blow from its first sample on, in mono.

    A damped sine is the imaginary part of exp(z n), and exp(z (BLOCK a + b)) = exp(z BLOCK a) exp(z b): two
    short tables and one matrix product replace an exponential and a sine per sample and mode.
    """
    longest = max(min(_seconds(blow), duration - blow.time) for blow in blows)
    num_blocks = math.ceil(longest * sample_rate / BLOCK) + 1
    num_modes = max(len(blow.modes) for blow in blows)
    table = torch.tensor(
        [
            [_entry(mode, blow.level, sample_rate) for mode in blow.modes]
            + [(0.0, 1.0, 0.0)] * (num_modes - len(blow.modes))
            for blow in blows
        ],
        dtype=torch.float64,
    )  # (n, modes, 3): cycles and nepers per sample, weight
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


def _faded(grain: Float[Tensor, " samples"], blow: Blow, sample_rate: int) -> Float[Tensor, " heard"]:
    """End a sound smoothly where its own longest mode has died away, whatever else is in the batch."""
    length = round(_seconds(blow) * sample_rate)
    if length >= len(grain):
        return grain
    fade = min(round(FADE * sample_rate), length)
    grain[length - fade : length].mul_(torch.linspace(1, 0, fade, device=grain.device))
    return grain[:length]


def _seconds(blow: Blow) -> float:
    return SILENT * max(mode.decay for mode in blow.modes)


def _entry(mode: Mode, level: float, sample_rate: int) -> tuple[float, float, float]:
    cycles = mode.frequency / sample_rate
    weight = mode.weight * level if cycles < NYQUIST_SHARE else 0.0  # would fold back
    return cycles, 1 / (mode.decay * sample_rate), weight
