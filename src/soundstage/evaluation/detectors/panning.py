"""Hear where each blow comes from, between the left and the right ear."""

import math

from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.observation import SAMPLE_RATE, Observation

LISTEN = 0.05  # s after an onset
BEFORE = 0.02  # s before it, whose power is what still rings and is taken off


def find_pans(seen: Observation) -> tuple[float, ...]:
    """Give the stereo position of every onset: 0 = left, 1 = right, at equal power."""
    waveform = seen.waveform
    pans = []
    for onset in seen.find(find_onsets):
        start = max(round((onset.time - 0.002) * SAMPLE_RATE), 0)
        blow = waveform[:, start : start + round(LISTEN * SAMPLE_RATE)].square().mean(1)
        older = waveform[:, max(start - round(BEFORE * SAMPLE_RATE), 0) : start]
        if older.shape[1]:
            blow = (blow - older.square().mean(1)).clamp_min(1e-9)
        left, right = blow.sqrt().tolist()
        pans.append(math.atan2(right, left) * 2 / math.pi)
    return tuple(pans)
