"""Name the notes of a xylophone by ear: the pitch that each onset adds to what still rings."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.data.world.xylophone import MAKES, NOTES
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.observation import SAMPLE_RATE, Observation

LISTEN = 0.16  # s after an onset, less where the next one comes sooner
SKIP = 0.012  # s that the mallet's knock lasts
LEAST_LISTEN = 0.05  # s; in less no pitch is heard
OLD_LEFT = 0.5  # of the power of an older note that is still there in the window after an onset
LEAST_LEVEL = -20.0  # dB, of an onset that is a note
SPECTRUM = 1 << 16  # points, 0.25 Hz apart
MARGIN = 1.08  # how far beyond the scale a pitch may lie

SCALE: tuple[tuple[str, float], ...] = tuple(
    (note, hertz * make.pitch) for make in MAKES.values() for note, hertz in NOTES.items()
)
"""All bars of all xylophones, with their Hz."""


@dataclass(frozen=True, kw_only=True)
class HeardNote:
    """One note."""

    time: float  # s, of its onset
    name: str  # of the nearest bar
    hertz: float
    cents: float  # above that bar


def find_notes(seen: Observation) -> tuple[HeardNote, ...]:
    """List the notes of a clip in order."""
    waveform = seen.waveform
    times = [onset.time for onset in seen.find(find_onsets) if onset.level > LEAST_LEVEL]
    found = []
    for index, time in enumerate(times):
        following = times[index + 1] if index + 1 < len(times) else seen.duration
        seconds = min(LISTEN, following - time - SKIP)
        if seconds < LEAST_LISTEN:
            continue
        after = _power(waveform, time + SKIP, seconds)
        before = _power(waveform, time - 0.002 - seconds, seconds)
        hertz = _peak(after - OLD_LEFT * before)
        name, bar = min(SCALE, key=lambda entry: abs(math.log(hertz / entry[1])))
        found.append(HeardNote(time=time, name=name, hertz=hertz, cents=1200 * math.log2(hertz / bar)))
    return tuple(found)


def _power(waveform: Float[Tensor, "2 samples"], start: float, seconds: float) -> Float[np.ndarray, " bins"]:
    """Power spectrum of a piece, both ears together; what lies before the clip is silent."""
    length = round(seconds * SAMPLE_RATE)
    first = round(start * SAMPLE_RATE)
    piece = F.pad(waveform, (max(-first, 0), 0))[:, max(first, 0) :][:, :length]
    window = torch.hann_window(length, periodic=False)[: piece.shape[1]]
    power: Float[np.ndarray, " bins"] = (
        torch.fft.rfft(piece * window, SPECTRUM).abs().square().sum(0).double().numpy()
    )
    return power


def _peak(power: Float[np.ndarray, " bins"]) -> float:
    """Hz of the highest point within the reach of the scale."""
    step = SAMPLE_RATE / SPECTRUM
    low = int(min(hertz for _, hertz in SCALE) / MARGIN / step)
    high = int(max(hertz for _, hertz in SCALE) * MARGIN / step)
    return (low + int(power[low:high].argmax())) * step
