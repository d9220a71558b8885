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
from soundstage.data.world.damped_sines import BLOCK, SILENT_MODE, Mode, add_panned, ring
from soundstage.data.world.limiter import limit

SILENT = 7.0  # decay times after which a mode is 61 dB down
FADE = 0.02  # s, from what is left then to nothing


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
            add_panned(waveform, blow.row, start, _faded(grain, blow, sample_rate), blow.pan)
    return limit(waveform)


def _grains(
    blows: Sequence[Blow], duration: float, sample_rate: int, device: torch.device
) -> Float[Tensor, "n samples"]:
    """Sum of damped sines of each blow from its first sample on, in mono."""
    longest = max(min(_seconds(blow), duration - blow.time) for blow in blows)
    num_modes = max(len(blow.modes) for blow in blows)
    rows = [
        [mode._replace(weight=mode.weight * blow.level).per_sample(sample_rate) for mode in blow.modes]
        + [SILENT_MODE] * (num_modes - len(blow.modes))
        for blow in blows
    ]
    table = torch.tensor(rows, dtype=torch.float64)
    return ring(table, math.ceil(longest * sample_rate / BLOCK) + 1, device)


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
