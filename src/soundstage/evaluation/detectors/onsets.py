"""Find when sounds begin, to about a millisecond, also on top of what still rings.

A blow adds energy between the partials of an older one, where there was none. So the mean rise over all
fine frequency bins, in decibels, stands out even where the total energy falls; noise rises and falls equally
often and cancels in the mean. Then the time is read from a short window, at the steepest rise.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.dsp.stft import hann_window
from soundstage.evaluation.observation import SAMPLE_RATE, Observation

HOP = 16  # samples, 1 ms
COARSE, FINE = 512, 64  # samples, 32 and 4 ms: one hears partials apart, the other moments
COARSE_LAG, FINE_LAG = 20, 5  # hops over which a rise is taken
DEPTH, FINE_DEPTH = 50.0, 25.0  # dB below the loudest moment that still count
FINE_AHEAD = 2.6  # ms that the short window hears ahead, measured on the world
BASS, FINE_BASS = 400.0, 1500.0  # Hz, from where on a bin counts less the higher it is
FAINT_RISE, CLEAR_RISE, SURE_RISE = 3.0, 5.0, 10.0  # dB, mean over the bins
FAINT_LEVEL, CLEAR_LEVEL = -30.0, -12.0  # dB of what an onset adds, relative to the loudest moment
APART = 45  # hops between two onsets
SEARCH = 24  # hops around the coarse time in which the fine time is sought
EDGE = 0.1  # s before the end of a clip in which an onset is not clear
END = 0.025  # s before the end in which nothing counts: there the coder fades the sound out

Spectrum = Float[Tensor, "bins hops"]


@dataclass(frozen=True, kw_only=True)
class HeardOnset:
    """The beginning of a sound."""

    time: float  # s
    rise: float  # dB, mean over the spectrum
    level: float  # dB of what it adds, relative to the loudest moment of the clip
    is_clear: bool  # whether a listener would expect to see a cause


def find_onsets(seen: Observation) -> tuple[HeardOnset, ...]:
    """List the beginnings of sounds in order."""
    waveform = seen.waveform
    if float(waveform.abs().max()) < 1e-4:
        return ()
    rise = _rise(_decibels(_power(waveform, COARSE), DEPTH), COARSE_LAG, bass=BASS)
    power = F.avg_pool1d(waveform.square().sum(0)[None, None], 10 * HOP, HOP, padding=5 * HOP)[0, 0]
    found = []
    for index in _peaks(rise, FAINT_RISE, APART):
        time = _steepest(waveform, index) / 1000
        level = _added(power, index)
        left = seen.duration - time
        height = float(rise[index])
        if (level > FAINT_LEVEL or height > SURE_RISE) and left > END:
            is_clear = height > CLEAR_RISE and level > CLEAR_LEVEL and left > EDGE
            found.append(HeardOnset(time=time, rise=height, level=level, is_clear=is_clear))
    return tuple(sorted(found, key=lambda onset: onset.time))


def _power(waveform: Float[Tensor, "2 samples"], window: int) -> Spectrum:
    """Power of both channels together, every millisecond, the ends mirrored."""
    padded = F.pad(waveform, (window // 2, window // 2), mode="reflect")
    shape = hann_window(window).float()
    return (
        torch.stft(padded, window, HOP, window, shape, center=False, return_complex=True)
        .abs()
        .square()
        .sum(0)
    )


def _decibels(power: Spectrum, depth: float) -> Spectrum:
    """Levels down to `depth` below the loudest moment, a soft floor."""
    floor = power.mean(0).max() * 10 ** (-depth / 10)
    return 10 * torch.log10(power + floor.clamp_min(1e-12))


def _rise(levels: Spectrum, lag: int, *, bass: float) -> Float[Tensor, " hops"]:
    """Mean rise over `lag` hops, low bins counting more: the bins of a drum are few."""
    frequency = torch.linspace(0, SAMPLE_RATE / 2, len(levels))
    weight = 1 / (frequency + bass)
    curve = (weight / weight.sum()) @ levels
    padded = F.pad(curve[None], (lag // 2, lag - lag // 2), mode="replicate")[0]
    return padded[lag:] - padded[:-lag]


def _added(power: Float[Tensor, " hops"], index: int) -> float:
    """Say how much power an onset adds to what still sounds, in dB relative to the loudest moment."""
    before = power[max(index - 25, 0) : max(index - 5, 1)].mean()
    added = power[index : index + 30].max() - before
    return 10 * math.log10(max(float(added / power.max()), 1e-10))


def _peaks(curve: Float[Tensor, " hops"], least: float, apart: int) -> list[int]:
    """Places of the highest values, no two closer than `apart`."""
    wide = F.max_pool1d(curve[None, None], 2 * apart + 1, 1, padding=apart)[0, 0]
    return [int(index) for index in ((curve == wide) & (curve > least)).nonzero()[:, 0]]


def _steepest(waveform: Float[Tensor, "2 samples"], index: int) -> float:
    """Time in ms of the steepest rise near a coarse onset, between the hops by a parabola."""
    first = max((index - SEARCH) * HOP, 0)
    piece = waveform[:, first : (index + SEARCH) * HOP]
    rise = _rise(_decibels(_power(piece, FINE), FINE_DEPTH), FINE_LAG, bass=FINE_BASS)
    place = int(rise[1:-1].argmax()) + 1
    left, middle, right = (float(rise[place + step]) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    return first / HOP + place + (0.5 * (left - right) / bend if bend < 0 else 0.0) + FINE_AHEAD
