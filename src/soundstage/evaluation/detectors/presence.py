"""Whether anything is there to see or to hear: for scenes that are silent, or that happen out of sight."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from soundstage.evaluation.observation import SAMPLE_RATE, Observation

WINDOW = SAMPLE_RATE // 50  # samples, 20 ms
ROWS = 48  # to which every picture is brought
LAG = 3  # frames between two that are compared
REACH = 5  # pixels by which a camera may have turned between them
TOLERANCE = 1  # pixels by which things may be displaced and still be at rest
CHANGED = 30.0  # 8-bit steps from which a pixel has changed


@dataclass(frozen=True, kw_only=True)
class Presence:
    """How much is there."""

    loudest: float  # dB of full scale, root mean square of the loudest 20 ms
    moving: float  # largest share of the picture that moves on its own, but for the largest tenth of frames


def find_presence(seen: Observation) -> Presence:
    """Listen for the loudest moment; look for what moves otherwise than the camera."""
    power = F.avg_pool1d(seen.waveform.square().mean(0)[None, None], WINDOW)[0, 0]
    loudest = 10 * math.log10(float(power.max()) + 1e-10) if len(power) else -100.0
    return Presence(loudest=loudest, moving=_moving(seen))


def _moving(seen: Observation) -> float:
    pictures = seen.pictures.permute(0, 3, 1, 2)
    if len(pictures) <= LAG:
        return 0.0
    width = max(round(ROWS * pictures.shape[3] / pictures.shape[2]), 2 * (REACH + TOLERANCE) + 1)
    small = F.interpolate(pictures, (ROWS, width), mode="area")
    earlier, later = small[:-LAG:2], small[LAG::2]
    inner = slice(REACH + TOLERANCE, width - REACH - TOLERANCE)
    changes = {}
    for shift in range(-REACH - TOLERANCE, REACH + TOLERANCE + 1):
        for lift in range(-TOLERANCE, TOLERANCE + 1):
            moved = later.roll((lift, shift), (2, 3))
            changes[shift, lift] = (moved - earlier).abs().mean(1)[..., TOLERANCE:-TOLERANCE, inner]
    still = torch.stack([changes[shift, 0].flatten(1).mean(1) for shift in range(-REACH, REACH + 1)])
    turned = still.argmin(0) - REACH  # for each pair of frames
    shares = []
    for pair, shift in enumerate(turned.tolist()):
        least = torch.stack(
            [
                changes[shift + aside, lift][pair]
                for aside in range(-TOLERANCE, TOLERANCE + 1)
                for lift in range(-TOLERANCE, TOLERANCE + 1)
            ]
        ).amin(0)
        shares.append(float((least > CHANGED).float().mean()))
    return float(torch.tensor(shares).quantile(0.9))
