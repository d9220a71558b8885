"""Find when something that swings turns round, such as the bob of a clock, to a fraction of a frame.

Around a turn the film is the same forwards and backwards, whatever swings there. So nothing needs to be
tracked: a turn is a moment about which the pictures are most nearly mirrored in time.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.evaluation.observation import Observation

Side = Literal["left", "right"]

SIZE = 16  # pixels of height that the pictures are shrunk to; a bob is at least 5 wide
LEAST_REACH, SHARE_OF_GAP = (
    2.5,
    0.45,
)  # frames to either side that are compared, at least; of the gap to a turn
FIRST_REACH = 4.0  # frames to either side before any gap is known
LEAST_PAIRS = 2  # of frames about a turn, else it is too near an end of the clip
MIRRORED = 0.8  # how different the two sides of a turn may be, relative to any two such frames
APART, WALL, DEPTH = 6, 12, 0.25  # half frames between turns, and within which it rises by so much
LEAST_MOTION = 1.5  # 8-bit steps, root mean square, between two frames that are farther apart than those
STILL_LAG = 3  # frames

Differences = Float[np.ndarray, "frames frames"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Where something that swings turns round."""

    time: float  # s
    side: Side
    x: float  # picture heights from the left edge, about the middle of what is there
    asymmetry: float  # 0 = the film runs back exactly as it came


def find_turns(seen: Observation) -> tuple[Turn, ...]:
    """List the turns of what swings, in order; those in the last frames at either end are not seen."""
    return turns_of(seen.pictures, seen.times.numpy())


def turns_of(
    pictures: Float[Tensor, "frames height width 3"], times: Float[np.ndarray, " frames"]
) -> tuple[Turn, ...]:
    """Find the turns in pictures that may show anything that belongs to what swings, such as its colour."""
    small = _shrunk(pictures)
    differences = _differences(small)
    lags = np.arange(len(differences))
    usual = np.array([differences.diagonal(lag).mean() for lag in lags])  # of two frames `lag` apart
    if len(lags) <= STILL_LAG or np.sqrt(usual[STILL_LAG:].max()) < LEAST_MOTION:
        return ()
    rough = _minima(_asymmetry(differences, usual, FIRST_REACH))
    if not rough:
        return ()
    gap = float(np.median(np.diff(rough))) / 2 if len(rough) > 1 else 2 * FIRST_REACH / SHARE_OF_GAP
    curve = _asymmetry(differences, usual, max(SHARE_OF_GAP * gap, LEAST_REACH))
    found = []
    for index in _minima(curve):
        frame = _vertex(curve, index) / 2
        time = float(np.interp(frame, np.arange(len(times)), times))
        found.append((time, frame, float(curve[index])))
    return _sided(small, found)


def _shrunk(pictures: Float[Tensor, "frames height width 3"]) -> Float[Tensor, "frames 3 rows columns"]:
    """Small pictures, which are quick to compare and hardly know about the coder's noise."""
    height, width = pictures.shape[1:3]
    columns = max(round(SIZE * width / height), 1)
    return F.interpolate(pictures.permute(0, 3, 1, 2), (SIZE, columns), mode="area")


def _differences(pictures: Float[Tensor, "frames 3 rows columns"]) -> Differences:
    """Mean square difference of any two frames."""
    flat = pictures.flatten(1)
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square().div(flat.shape[1]).double().numpy()


def _asymmetry(
    differences: Differences, usual: Float[np.ndarray, " frames"], reach: float
) -> Float[np.ndarray, " moments"]:
    """How unlike the frames before and after each moment are, relative to frames as far apart elsewhere.

    Moments lie half a frame apart: twice a moment is the sum of the indices of each pair of frames about it.
    """
    count = len(differences)
    curve = np.full(2 * count - 1, np.inf)
    for moment in range(2 * count - 1):
        first = np.arange(max(moment - count + 1, 0), (moment + 1) // 2)
        second = moment - first
        near = (second - first) <= 2 * reach
        if near.sum() >= LEAST_PAIRS:
            lags = second[near] - first[near]
            curve[moment] = differences[first[near], second[near]].sum() / max(usual[lags].sum(), 1e-9)
    return curve


def _minima(curve: Float[np.ndarray, " moments"]) -> list[int]:
    """Moments that are clearly more symmetric than those around them."""
    found: list[int] = []
    for index in range(1, len(curve) - 1):
        around = curve[max(index - APART, 0) : index + APART + 1]
        is_lowest = curve[index] == around.min() and (not found or index - found[-1] > APART)
        walls = (curve[max(index - WALL, 0) : index], curve[index + 1 : index + WALL + 1])
        if curve[index] < MIRRORED and is_lowest and min(map(_height, walls)) > curve[index] + DEPTH:
            found.append(index)
    return found


def _height(wall: Float[np.ndarray, " moments"]) -> float:
    """Highest value of a piece of the curve; nothing is known near the ends of a clip."""
    return float(wall[np.isfinite(wall)].max(initial=0.0))


def _vertex(curve: Float[np.ndarray, " moments"], index: int) -> float:
    """Place the minimum between moments by the parabola through those within a frame."""
    near = np.arange(max(index - 2, 0), min(index + 3, len(curve)))
    near = near[np.isfinite(curve[near])]
    if len(near) < 4:
        return float(index)
    bend, slope, _ = np.polyfit(near - index, curve[near], 2)
    if bend <= 0:
        return float(index)
    return index + float(np.clip(-slope / (2 * bend), -1.5, 1.5))


def _sided(
    pictures: Float[Tensor, "frames 3 rows columns"], found: list[tuple[float, float, float]]
) -> tuple[Turn, ...]:
    """Tell left from right by what is there and not in the usual picture."""
    usual = pictures.median(0).values
    columns = (torch.arange(pictures.shape[3], dtype=torch.float32) + 0.5) / SIZE
    novelty = (pictures - usual).abs().sum((1, 2)).square()  # (frames, columns)
    places = (novelty * columns).sum(1) / novelty.sum(1).clamp_min(1e-6)
    middle = float(places.min() + places.max()) / 2
    turns = []
    for time, frame, asymmetry in found:
        x = float(places[min(max(round(frame), 0), len(places) - 1)])
        turns.append(Turn(time=time, side="left" if x < middle else "right", x=x, asymmetry=asymmetry))
    return tuple(turns)
