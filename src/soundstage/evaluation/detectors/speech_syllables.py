"""Write down the syllables that are heard, with a classifier fitted on voices synthesised afresh.

Loud stretches of voice are the vowels. Where exactly a syllable's mouth opens is not asked of the loudness:
the classifier is tried at every moment near the beginning of a stretch, and the best fit says what and when.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from soundstage.core.rng import generator
from soundstage.data.world.face import Face, sample_face
from soundstage.data.world.face_speech import SYLLABLES, spoken
from soundstage.data.world.voice import speak
from soundstage.dsp.mel import MelConfig, log_mel
from soundstage.evaluation.classifier import LinearDiscriminant
from soundstage.evaluation.detectors.speech import FAINT, HOP, find_loudness
from soundstage.evaluation.observation import SAMPLE_RATE, Observation

MEL = MelConfig(sample_rate=SAMPLE_RATE, n_fft=512, win_length=400, hop_length=HOP, num_mels=28, f_min=80.0)
HOPS_PER_SECOND = SAMPLE_RATE / HOP
SLICES = (-0.09, -0.06, -0.035, -0.015, 0.0, 0.012, 0.03, 0.055, 0.085, 0.12)  # s from the release
DEPTH = 45.0  # dB below a syllable's loudest moment that still count
LOUD, QUIET = 0.12, 0.085  # of the loudest moment: what is a vowel, and where it ends
SHORTEST = 0.06  # s of a vowel
SEARCH = (-0.05, 0.13)  # s around the beginning of a stretch in which the release may lie
NUM_SPEAKERS = 12
NOISE_LEVELS = (0.0, 1e-3, 4e-3)  # root mean square that examples are spoilt with
JITTER = 0.004  # s by which examples are misplaced

Levels = Float[Tensor, "hops mels"]


@dataclass(frozen=True, kw_only=True)
class HeardSyllable:
    """A consonant with its vowel."""

    text: str
    time: float  # s, of the release
    fit: float  # log-likelihood up to a constant; nearer to 0 = more like the world's voices


def find_syllables(seen: Observation) -> tuple[HeardSyllable, ...]:
    """Write down what is said, in order."""
    stretches = _stretches(seen.find(find_loudness))
    if not stretches:
        return ()
    levels, heard = _levels(seen.waveform), []
    classifier = _classifier()
    for begin, end in stretches:
        times = np.arange(begin + SEARCH[0], min(begin + SEARCH[1], end - 0.05), 1 / HOPS_PER_SECOND)
        distances = classifier.distances(_features(levels, times))
        place, number = divmod(int(distances.argmin()), distances.shape[1])
        fit = -float(distances[place, number]) / 2
        heard.append(HeardSyllable(text=classifier.labels[number], time=float(times[place]), fit=fit))
    return tuple(heard)


def matched_syllables(heard: Sequence[str], wanted: Sequence[str]) -> int:
    """Count the wanted syllables that are heard, in order: the longest common subsequence."""
    best = [0] * (len(wanted) + 1)
    for one in heard:
        before = best.copy()
        for index, other in enumerate(wanted, start=1):
            best[index] = before[index - 1] + 1 if one == other else max(before[index], best[index - 1])
    return best[-1]


def _stretches(loudness: Float[Tensor, " n"]) -> list[tuple[float, float]]:
    """Begin and end of each vowel in seconds; a dip parts two."""
    top = float(loudness.max())
    if top < FAINT:
        return []
    stretches: list[tuple[float, float]] = []
    begin: int | None = None
    for index, level in enumerate([*loudness.tolist(), 0.0]):
        if begin is None and level > LOUD * top:
            begin = index
        elif begin is not None and level < QUIET * top:
            if index - begin >= SHORTEST * HOPS_PER_SECOND:
                stretches.append((begin / HOPS_PER_SECOND, index / HOPS_PER_SECOND))
            begin = None
    return stretches


def _levels(waveform: Float[Tensor, "2 samples"]) -> Levels:
    """Decibels of both channels together."""
    power = log_mel(waveform[None], MEL)[0].mul(2).exp().sum(0)  # (hops, mels)
    return 10 * torch.log10(power + 1e-12)


def _features(levels: Levels, times: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
    """Spectrum before, at and after each moment, relative to the loudest of it."""
    places = (times[:, None] + np.array(SLICES)) * HOPS_PER_SECOND
    index = places.round().astype(np.int64).clip(0, len(levels) - 1)
    pieces = levels[torch.from_numpy(index)].flatten(1)  # (n, slices * mels)
    floor = pieces.amax(1, keepdim=True) - DEPTH
    return (pieces.maximum(floor) - floor).numpy().astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class _Syllabary:
    """Discriminants of all syllables, for many moments at once."""

    discriminant: LinearDiscriminant

    @property
    def labels(self) -> tuple[str, ...]:
        return self.discriminant.labels

    def distances(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n labels"]:
        """Squared distance of each moment to each syllable."""
        places = (rows - self.discriminant.centre) @ self.discriminant.whitening.T
        means = self.discriminant.means
        squares = np.square(places).sum(1)[:, None] + np.square(means).sum(1)
        distances: NDArray[np.float64] = squares - 2 * places @ means.T
        return distances


@cache
def _classifier() -> _Syllabary:
    """Fit on voices of the world that say every syllable, some with noise."""
    rng = random.Random("syllables")
    features, labels = [], []
    for number in range(NUM_SPEAKERS):
        texts = rng.sample(SYLLABLES, len(SYLLABLES))
        faces = [_saying(rng, texts[first : first + 4]) for first in range(0, len(texts), 4)]
        duration = max(face.utterance.syllables[-1].end for face in faces) + 0.1
        waveforms = speak(faces, duration=duration, sample_rate=SAMPLE_RATE)
        noise = torch.randn(waveforms.shape, generator=generator(number, "syllables"))
        waveforms += noise * NOISE_LEVELS[number % len(NOISE_LEVELS)]
        for face, waveform in zip(faces, waveforms, strict=True):
            levels = _levels(waveform)
            said = face.utterance.syllables
            times = np.array([one.release + rng.uniform(-JITTER, JITTER) for one in said])
            features.append(_features(levels, times))
            labels += [one.text for one in said]
    return _Syllabary(discriminant=LinearDiscriminant.fit(np.concatenate(features), labels))


def _saying(rng: random.Random, texts: Sequence[str]) -> Face:
    """A speaker of the world who says other words."""
    from dataclasses import replace

    face = sample_face(rng, split="train", duration=2.0, aspect=1.0)
    pace = [rng.uniform(0.19, 0.27) for _ in texts]
    gaps = [rng.uniform(0.04, 0.09) for _ in texts]
    return replace(face, utterance=spoken(texts, start=0.15, pace=pace, gaps=gaps))
