"""See which bars of a xylophone are struck, and when: a struck bar lights up."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.data.world.xylophone import BAR_COLOURS, BOTTOM, GLOW, GLOW_TIME, HEAD, NOTES, SLOPE, STRIKE_Y
from soundstage.evaluation.detectors.strikes_glow import find_blows
from soundstage.evaluation.observation import Observation

ROWS = (STRIKE_Y + HEAD + 0.01, BOTTOM - SLOPE * (len(NOTES) - 1) - 0.01)
"""From where to where, in picture heights, all bars reach and no mallet comes."""
FAR = 70.0  # 8-bit steps; a colour that differs more is no bar's
LEAST_COLUMNS = 0.05  # picture heights that a bar is wide at least
LEAST_GLOW = 0.2  # of white


@dataclass(frozen=True, kw_only=True)
class StruckBar:
    """One strike on a bar."""

    time: float  # s
    name: str
    x: float  # picture heights from the left edge, of the bar


def find_struck_bars(seen: Observation) -> tuple[StruckBar, ...]:
    """List the strikes in order."""
    height = seen.pictures.shape[1]
    strip = seen.pictures[
        :, round(ROWS[0] * height) : max(round(ROWS[1] * height), round(ROWS[0] * height) + 1)
    ]
    lines = strip.mean(1)  # (frames, width, 3)
    still = lines.median(0).values
    found = []
    for name, columns in _bars(still, height).items():
        glow = _whiteness(lines[:, columns].mean(1), still[columns].mean(0))
        x = float(columns.float().mean() + 0.5) / height
        for blow in find_blows(glow, seen.times.numpy(), fade=GLOW_TIME, least=LEAST_GLOW, fresh=GLOW):
            found.append(StruckBar(time=blow.time, name=name, x=x))
    return tuple(sorted(found, key=lambda strike: strike.time))


def _bars(still: Float[Tensor, "width 3"], height: int) -> dict[str, Tensor]:
    """Columns of each bar that can be found, by its colour, without those at its edges."""
    palette = torch.tensor(list(BAR_COLOURS.values()), dtype=torch.float32)
    distance, nearest = torch.cdist(still, palette * 0.88).min(1)
    bars = {}
    for index, name in enumerate(BAR_COLOURS):
        columns = ((nearest == index) & (distance < FAR)).nonzero()[:, 0]
        if len(columns) >= LEAST_COLUMNS * height:
            middle = columns.median()
            bars[name] = columns[(columns - middle).abs() <= 0.05 * height]
    return bars


def _whiteness(colours: Float[Tensor, "frames 3"], still: Float[Tensor, "3"]) -> Float[np.ndarray, " frames"]:
    """How far towards white each colour is from its own."""
    way = 255 - still
    return ((colours - still) @ way / way.square().sum()).double().numpy()
