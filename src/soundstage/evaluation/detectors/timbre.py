"""Name the floor's material by its sound, with a classifier fitted on blows synthesised afresh."""

import random
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.rng import generator
from soundstage.data.world.bounce import sample_bounce
from soundstage.data.world.bounce_sound import sound_bounces
from soundstage.data.world.kind import CLIP_SECONDS
from soundstage.dsp.mel import MelConfig, log_mel
from soundstage.evaluation.classifier import FeatureRow, LinearDiscriminant
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.observation import SAMPLE_RATE, Observation

MEL = MelConfig(sample_rate=SAMPLE_RATE, n_fft=512, win_length=512, num_mels=32, f_max=SAMPLE_RATE / 2)
HOPS_PER_SECOND = SAMPLE_RATE / MEL.hop_length
STRIKE, RING = (0, 4), (6, 12)  # hops after an onset: the blow itself, and what it leaves
NUM_EXAMPLES = 120
NOISE_LEVELS = (0.0, 1e-3, 4e-3)  # root mean square that examples are spoilt with
JITTER = 0.008  # s by which their onsets are misplaced


def find_timbre(seen: Observation) -> str | None:
    """Name the material that the clip's blows sound like; None where nothing sounds."""
    onsets = seen.find(find_onsets)
    times = [onset.time for onset in onsets if onset.is_clear] or [onset.time for onset in onsets]
    if not times:
        return None
    return _classifier().classify(_features(seen.waveform, times))


@cache
def _classifier() -> LinearDiscriminant:
    """Fit on scenes of the world, some with noise, their onsets a little misplaced."""
    rng = random.Random("timbres")
    scenes = [sample_bounce(rng) for _ in range(NUM_EXAMPLES)]
    waveforms = sound_bounces(scenes, duration=CLIP_SECONDS, sample_rate=SAMPLE_RATE)
    noise = torch.randn(waveforms.shape, generator=generator(0, "timbres"))
    features = []
    for index, scene in enumerate(scenes):
        spoilt = waveforms[index] + noise[index] * NOISE_LEVELS[index % len(NOISE_LEVELS)]
        times = [
            event.time + rng.uniform(-JITTER, JITTER) for event in scene.events_before(CLIP_SECONDS - 0.05)
        ]
        features.append(_features(spoilt, times))
    return LinearDiscriminant.fit(np.stack(features), [scene.floor for scene in scenes])


def _features(waveform: Float[Tensor, "2 samples"], times: Sequence[float]) -> FeatureRow:
    """Spectrum of the blows and how much of it is left a little later, the mean over all blows."""
    power = log_mel(waveform[None], MEL)[0].mul(2).exp().sum(0)  # (t, mels)
    levels = 10 * torch.log10(power + float(power.max()) * 1e-5)
    rows = []
    for time in times:
        start = min(max(round(time * HOPS_PER_SECOND), 0), len(levels) - 1)
        strike = levels[start + STRIKE[0] : start + STRIKE[1] + 1].max(0).values
        ring = levels[start + RING[0] : start + RING[1]]
        left = ring.mean(0) if len(ring) else strike
        fall = (left - strike).reshape(8, -1).mean(1)
        rows.append(torch.cat((strike - strike.mean(), fall)))
    return torch.stack(rows).mean(0).numpy().astype(np.float64)
