"""Find when the object hits the floor, to a fraction of a frame, from the path of its lowest point.

Between impacts the point falls freely, so each impact is where two parabolas of the same curvature meet, or
one parabola and a line at rest. Their meeting point is found by least squares over the frames beside it.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soundstage.data.world.motion import REST_SPEED
from soundstage.evaluation.detectors.tracking import track_object
from soundstage.evaluation.observation import Observation

FAINT_SPEED = 0.6 * REST_SPEED  # heights/s; slower contacts are not looked at
CLEAR_SPEED = 1.5 * REST_SPEED  # heights/s; from here on nobody would miss the contact
REACH = 5  # frames on each side that a fit may use
FLOOR_REACH = 0.06  # picture heights; how far above the lowest contact a contact may be
MAX_DEVIATION = 0.025  # picture heights, root mean square, of a path from its two arcs
GRAVITY = (2.0, 9.0)  # heights/s^2, the world's and some more
LIFT = 0.03  # picture heights that a flight must rise or fall to tell its curvature
GRID = 0.05  # frames, of the search for the meeting point

Series = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SeenImpact:
    """A contact as seen."""

    time: float  # s
    x: float  # picture heights, of the centre
    speed: float  # heights/s, downwards, before the contact
    is_clear: bool  # whether a viewer would expect a sound


class _Meeting(NamedTuple):
    """Two arcs that meet."""

    time: float
    level: float
    speed_in: float
    speed_out: float
    error: float


def find_impacts(seen: Observation) -> tuple[SeenImpact, ...]:
    """List the contacts with the floor in order."""
    track = seen.find(track_object)
    shown = track.visible.numpy()
    times, foot, x = (
        np.asarray(series, dtype=np.float64)[shown] for series in (seen.times, track.foot, track.x)
    )
    if len(times) < 2 * 3:
        return ()
    return tuple(
        SeenImpact(
            time=meeting.time,
            x=float(np.interp(meeting.time, times, x)),
            speed=meeting.speed_in,
            is_clear=bool(meeting.speed_in >= CLEAR_SPEED and times[1] < meeting.time < times[-2]),
        )
        for meeting in meetings_of(times, foot)
    )


def meetings_of(times: Series, foot: Series) -> list[_Meeting]:
    """Fit every candidate, then once more between the times of its neighbours."""
    borders = [float(times[index]) for index in _candidates(times, foot)]
    meetings: list[_Meeting] = []
    for _ in range(3):
        gravity = _gravity(times, foot, borders)
        limits = [-np.inf, *borders, np.inf]
        fits = [
            _fit(times, foot, guess, (limits[index], limits[index + 2]), gravity)
            for index, guess in enumerate(borders)
        ]
        meetings = _apart([fit for fit in fits if fit is not None and _is_plausible(fit)], times)
        floor = max((meeting.level for meeting in meetings), default=0.0)
        meetings = [meeting for meeting in meetings if meeting.level > floor - FLOOR_REACH]
        borders = [meeting.time for meeting in meetings]
    return meetings


def _is_plausible(meeting: _Meeting) -> bool:
    return meeting.speed_in >= FAINT_SPEED and meeting.error < MAX_DEVIATION**2


def _apart(meetings: list[_Meeting], times: Series) -> list[_Meeting]:
    """Of two meetings within 1.6 frames, which are one contact seen twice, keep the harder."""
    least = 1.6 * float(np.median(np.diff(times)))
    kept: list[_Meeting] = []
    for meeting in sorted(meetings, key=lambda meeting: -meeting.speed_in):
        if all(abs(meeting.time - other.time) > least for other in kept):
            kept.append(meeting)
    return sorted(kept)


def _gravity(times: Series, foot: Series, borders: list[float]) -> float:
    """Estimate the curvature of free flight from the frames between contacts, long flights counting most."""
    step = float(np.median(np.diff(times)))
    limits = [-np.inf, *borders, np.inf]
    curvatures, weights = [], []
    for start, end in pairwise(limits):
        inside = (times > start + 0.7 * step) & (times < end - 0.7 * step)
        t, y = times[inside], foot[inside]
        if len(t) >= 5 and np.ptp(y) > LIFT:
            curvatures.append(2 * np.polyfit(t - t.mean(), y, 2)[0])
            weights.append(np.ptp(t) ** 4 * len(t))  # the inverse of its variance
    if not curvatures:
        return sum(GRAVITY) / 2
    return float(np.clip(np.average(curvatures, weights=weights), *GRAVITY))


def _candidates(times: Series, foot: Series) -> list[int]:
    """Frames around which a fall ends: where the velocity drops most, one for each drop."""
    step = float(np.median(np.diff(times)))
    velocity = np.diff(foot) / step
    drop = np.zeros(len(foot))
    drop[1:-1] = velocity[:-1] - velocity[1:]
    wide = drop.copy()
    wide[1:-2] = np.maximum(wide[1:-2], velocity[:-2] - velocity[2:])  # a contact between two frames
    found: list[int] = []
    for index in np.argsort(-wide):
        if wide[index] < 1.2 * FAINT_SPEED:
            break
        before = velocity[max(index - 2, 0) : index + 1].max(initial=0)
        if before >= FAINT_SPEED and all(abs(index - other) > 2 for other in found):
            found.append(int(index))
    return sorted(found)


def _fit(
    times: Series, foot: Series, guess: float, limits: tuple[float, float], gravity: float
) -> _Meeting | None:
    """Place the meeting of two arcs within 1.5 frames of a guess: two flights, or a flight and rest."""
    step = float(np.median(np.diff(times)))
    near = np.abs(times - guess) < (REACH + 0.5) * step
    near &= (times > limits[0]) & (times < limits[1])
    t, y = times[near], foot[near]
    trials = guess + np.arange(-1.5, 1.5, GRID) * step
    trials = trials[((t < trials[:, None]).sum(1) >= 2) & ((t >= trials[:, None]).sum(1) >= 1)]
    if not len(trials):
        return None
    meetings = [_meet(t, y, trials, gravity, flies=flies) for flies in (True, False)]
    return min((best for best in meetings if best is not None), key=lambda best: best.error, default=None)


def _meet(t: Series, y: Series, trials: Series, gravity: float, *, flies: bool) -> _Meeting | None:
    """Fit both arcs for every trial time at once and take the best; after it the object flies or rests."""
    offset = t - trials[:, None]  # (trials, frames)
    falling = gravity / 2 * offset**2 * ((offset < 0) | flies)
    columns = [np.ones_like(offset), np.minimum(offset, 0)]
    if flies:
        columns.append(-np.maximum(offset, 0))
    design = np.stack(columns, -1)
    solution = np.linalg.pinv(design) @ (y - falling)[..., None]  # (trials, unknowns, 1)
    error = np.square(y - falling - (design @ solution)[..., 0]).mean(1)
    speed_out = solution[:, 2, 0] if flies else np.zeros(len(trials))
    error[speed_out < 0] = np.inf
    best = int(error.argmin())
    if not np.isfinite(error[best]):
        return None
    level, speed_in = solution[best, :2, 0]
    return _Meeting(
        float(trials[best]), float(level), float(speed_in), float(speed_out[best]), float(error[best])
    )
