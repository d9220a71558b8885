"""Name the floor's material by its looks, with a classifier fitted on floors drawn afresh."""

import random
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.data.world.backdrop import draw_backdrop
from soundstage.data.world.bounce import FLOOR_TOP, sample_bounce
from soundstage.evaluation.classifier import FeatureRow, LinearDiscriminant
from soundstage.evaluation.detectors.tracking import track_object
from soundstage.evaluation.observation import Observation

ROWS = 64  # to which every picture is brought
BANDS = 5  # strips of the floor, from back to front
NUM_EXAMPLES = 240

Strip = Float[Tensor, "3 height width"]  # RGB in [0, 1]


def find_floor(seen: Observation) -> str:
    """Name the floor under the object."""
    background = seen.find(track_object).background.permute(2, 0, 1) / 255
    return _classifier().classify(_features(background))


@cache
def _classifier() -> LinearDiscriminant:
    """Fit on drawn floors, half of them blurred as a generated clip may be."""
    rng = random.Random("floors")
    scenes = [sample_bounce(rng) for _ in range(NUM_EXAMPLES)]
    pictures = draw_backdrop(scenes, height=ROWS, width=ROWS, device=torch.device("cpu"))
    blurred = F.avg_pool2d(pictures, 5, stride=1, padding=2, count_include_pad=False)
    pictures[::2] = blurred[::2]
    features = np.stack([_features(picture) for picture in pictures])
    return LinearDiscriminant.fit(features, [scene.floor for scene in scenes])


def _features(picture: Strip) -> FeatureRow:
    """Colour, its spread across, and the strength of detail in each strip of the floor."""
    width = max(round(picture.shape[2] * ROWS / picture.shape[1]), 1)
    scaled = F.interpolate(picture[None], (ROWS, width), mode="area")[0]
    floor = scaled[:, round(FLOOR_TOP * ROWS) :]
    rows = []
    for band in floor.tensor_split(BANDS, dim=1):
        detail = band.diff(dim=2).abs().mean()
        rows += [band.mean((1, 2)), band.std((1, 2)), detail[None]]
    return torch.cat(rows).numpy().astype(np.float64)
