"""Tell from how brightly something glows when it was struck, to a fraction of a frame.

What is struck lights up at once and then fades exponentially. The first bright frame comes up to a frame
after the blow, and how much the light has faded by then says how long. Only the strength of a fresh glow must
be known: it lies between the brightest first frame of the clip and the darkest one a frame earlier.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Series = Float[np.ndarray, " frames"]

LEAST_JUMP = 0.3  # of the clip's greatest jump
APART = 2  # frames; rises that are nearer to each other are one blow, smeared


@dataclass(frozen=True, kw_only=True)
class Blow:
    """When something was struck."""

    time: float  # s
    frame: int  # the first bright one
    glow: float  # in that frame, above the level at rest


def find_blows(
    glow: Series, times: Series, *, fade: float, least: float, fresh: float | None = None
) -> tuple[Blow, ...]:
    """Find the jumps of a glow that fades with the time constant `fade` in seconds.

    Args:
        times: Seconds at which each frame is shown.
        least: Smallest jump that counts, whatever else happens in the clip.
        fresh: How bright a fresh glow is, where that is known; it gives way to what is seen.
    """
    if len(glow) < 2:
        return ()
    step = float(np.median(np.diff(times)))
    left = math.exp(-step / fade)
    rest = _level_at_rest(glow, left)
    above = glow - rest
    jumps = above - left * np.concatenate(([0.0], above[:-1]))
    limit = max(least, LEAST_JUMP * float(jumps.max()))
    blows: list[Blow] = []
    for group in _groups(np.flatnonzero(jumps > 0.25 * limit)):
        rise = jumps[group]
        if rise.sum() < limit or group[0] == 0:
            continue
        first = int(group[rise.argmax()])
        middle = float((rise * times[group]).sum() / rise.sum())
        before = float(above[group[0] - 1]) * left ** (len(group))
        blows.append(Blow(time=middle, frame=first, glow=float(rise.sum()) + max(before, 0.0)))
    full = _fresh_glow([blow.glow for blow in blows], left, fresh)
    return tuple(
        Blow(time=blow.time - _delay(blow.glow, full, fade, step), frame=blow.frame, glow=blow.glow)
        for blow in blows
    )


def _level_at_rest(glow: Series, left: float) -> float:
    """Level that the glow fades to: what each pair of frames says it is, unless there was a blow between."""
    return float(np.median((glow[1:] - left * glow[:-1]) / (1 - left)))


def _groups(frames: np.ndarray) -> list[np.ndarray]:
    """Split ascending frame numbers where neighbours are not next to each other."""
    return [group for group in np.split(frames, np.flatnonzero(np.diff(frames) >= APART) + 1) if len(group)]


def _fresh_glow(first: list[float], left: float, known: float | None) -> float:
    """Strength of a fresh glow: none is brighter, and each fades for less than a frame before it is seen."""
    if not first:
        return known or 1.0
    lower, upper = max(first), max(min(first) / left, max(first))
    if known is None:
        return math.sqrt(lower * upper)
    return min(max(known, lower), upper)


def _delay(glow: float, full: float, fade: float, step: float) -> float:
    """Seconds from the blow to the first bright frame, less than a frame."""
    return min(max(fade * math.log(full / glow), 0.0), step)
