"""Name rain, wind, sea or crowd and how strong it is, by its looks and by its sound, and follow its swell.

Discriminants and regressions are fitted on ambiences drawn and synthesised afresh, of places and swells of
their own.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from soundstage.data.world.ambience import ELEMENTS, LEVELS, Ambience, sample_ambience
from soundstage.data.world.ambience_picture import render_ambience
from soundstage.data.world.ambience_sound import sound_ambience
from soundstage.dsp.stft import hann_window
from soundstage.evaluation.classifier import LinearDiscriminant
from soundstage.evaluation.observation import SAMPLE_RATE, Observation, Pictures

NUM_EXAMPLES = 12  # of each element at each level
NUM_FRAMES, FRAME_RATE = 25, 24
ROWS, BANDS = 48, 6  # to which every picture is brought; strips from top to bottom
WINDOW, HOP = 1024, 400  # samples
SOUND_BANDS = (80.0, 200.0, 400.0, 700.0, 1100.0, 1800.0, 2600.0, 4000.0, 6000.0, 7900.0)  # Hz, their edges
RIDGE = 0.3  # of the regression, against features of deviation 1
SMOOTH = 5  # frames over which intensities are averaged

Series = NDArray[np.float64]
PictureFeatures = Float[Tensor, "inner features"]
Levels = Float[Tensor, "bands moments"]


@dataclass(frozen=True, kw_only=True)
class FoundAmbience:
    """What an ambience is taken for."""

    element: str
    level: str


class _Regression(NamedTuple):
    """Intensity from the features of a frame."""

    centre: Series
    scale: Series
    weights: Series
    offset: float


class _Judge(NamedTuple):
    """What was learnt."""

    looks: LinearDiscriminant
    sounds: LinearDiscriminant
    intensities: dict[str, _Regression]  # by element


def find_seen_ambience(seen: Observation) -> FoundAmbience:
    """Name element and level by the picture."""
    return _named(_judge().looks.classify(_looks(seen.pictures)))


def find_heard_ambience(seen: Observation) -> FoundAmbience | None:
    """Name element and level by the sound; None in silence."""
    if float(seen.waveform.abs().max()) < 1e-3:
        return None
    return _named(_judge().sounds.classify(_sounds(seen.waveform)))


def find_swell(seen: Observation) -> float | None:
    """Correlate the intensity that is seen with the one that is heard; None where one of them is flat."""
    element = seen.find(find_seen_ambience).element
    regression = _judge().intensities[element]
    features = _frame_features(seen.pictures).double().numpy()
    looks = (features - regression.centre) / regression.scale @ regression.weights + regression.offset
    loud = _sound_levels(seen.waveform).mean(0).double().numpy()
    moments = np.arange(len(loud)) * HOP / SAMPLE_RATE
    heard = np.interp(seen.times.numpy()[1:-1], moments, loud)
    if len(looks) < 3 * SMOOTH or min(np.std(looks), np.std(heard)) < 1e-6:
        return None
    kernel = np.ones(SMOOTH) / SMOOTH
    smooth = [np.convolve(curve, kernel, mode="valid") for curve in (looks, heard)]
    return float(np.corrcoef(smooth[0], smooth[1])[0, 1])


def _named(label: str) -> FoundAmbience:
    element, level = label.split()
    return FoundAmbience(element=element, level=level)


@cache
def _judge() -> _Judge:
    """Fit everything on ambiences of all elements and levels."""
    rng = random.Random("ambiences")
    examples = _examples(rng)
    looks, sounds, frames = [], [], []
    for example in examples:
        clip = render_ambience(
            [example], num_frames=NUM_FRAMES, height=ROWS, width=ROWS, frame_rate=FRAME_RATE, device="cpu"
        )
        pictures = ((clip[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 3, 0)
        duration = NUM_FRAMES / FRAME_RATE
        sound = sound_ambience([example], duration=duration, sample_rate=SAMPLE_RATE, device="cpu")[0]
        looks.append(_looks(pictures))
        sounds.append(_sounds(sound))
        frames.append(_frame_features(pictures).double().numpy())
    labels = [f"{example.element} {example.level}" for example in examples]
    return _Judge(
        LinearDiscriminant.fit(np.stack(looks), labels),
        LinearDiscriminant.fit(np.stack(sounds), labels),
        {element: _regress(element, examples, frames) for element in ELEMENTS},
    )


def _examples(rng: random.Random) -> list[Ambience]:
    counts = {(element, level): 0 for element in ELEMENTS for level in LEVELS}
    found = []
    while min(counts.values()) < NUM_EXAMPLES:
        one = sample_ambience(rng, split="train", duration=NUM_FRAMES / FRAME_RATE, aspect=1.0)
        if counts[one.element, one.level] < NUM_EXAMPLES:
            counts[one.element, one.level] += 1
            found.append(one)
    return found


def _regress(element: str, examples: Sequence[Ambience], frames: Sequence[Series]) -> _Regression:
    """Fit the logarithm of the intensity to the features of frames, by ridge regression."""
    chosen = [(one, of) for one, of in zip(examples, frames, strict=True) if one.element == element]
    x = np.concatenate([of for _, of in chosen])
    y = np.concatenate(
        [[np.log(one.intensity((k + 1) / FRAME_RATE)) for k in range(len(of))] for one, of in chosen]
    )
    centre, scale = x.mean(0), x.std(0) + 1e-6
    z = (x - centre) / scale
    offset = float(y.mean())
    weights = np.linalg.solve(z.T @ z + RIDGE * len(z) * np.eye(z.shape[1]), z.T @ (y - offset))
    return _Regression(centre, scale, weights, offset)


def _looks(pictures: Pictures) -> Series:
    """Features of a whole clip: means and deviations of those of its frames."""
    features = _frame_features(pictures)
    return torch.cat((features.mean(0), features.std(0))).double().numpy()


def _frame_features(pictures: Pictures) -> PictureFeatures:
    """Movement, difference from the usual picture, detail and colours in strips, but for the end frames."""
    width = max(round(ROWS * pictures.shape[2] / pictures.shape[1]), 1)
    small = F.interpolate(pictures.permute(0, 3, 1, 2), (ROWS, width), mode="area")
    inner = small[1:-1]
    movement = (small[2:] - small[:-2]).abs().mean(1)
    unusual = (inner - small.median(0).values).abs().mean(1)
    detail = F.pad(inner.diff(dim=3).abs().mean(1), (0, 1)) + F.pad(
        inner.diff(dim=2).abs().mean(1), (0, 0, 0, 1)
    )
    strips = [_in_bands(part.log1p()) for part in (movement, unusual, detail)]
    colours = [_in_bands(inner[:, channel] / 64) for channel in range(3)]
    return torch.cat((*strips, *colours), 1)


def _in_bands(values: Float[Tensor, "frames height width"]) -> Float[Tensor, "frames bands"]:
    return F.adaptive_avg_pool2d(values[:, None], (BANDS, 1)).flatten(1)


def _sounds(waveform: Float[Tensor, "2 samples"]) -> Series:
    levels = _sound_levels(waveform)
    return torch.cat((levels.mean(1), levels.std(1))).double().numpy()


def _sound_levels(waveform: Float[Tensor, "2 samples"]) -> Levels:
    """Decibels in each band of frequencies over time."""
    padded = F.pad(waveform, (WINDOW // 2, WINDOW // 2), mode="reflect")
    window = hann_window(WINDOW).float()
    power = torch.stft(padded, WINDOW, HOP, WINDOW, window, center=False, return_complex=True).abs().square()
    power = power.mean(0) / WINDOW
    bins = [round(edge / SAMPLE_RATE * WINDOW) for edge in SOUND_BANDS]
    bands = [power[low:high].mean(0) for low, high in pairwise(bins)]
    return 10 * torch.log10(torch.stack(bands) + 1e-9)
