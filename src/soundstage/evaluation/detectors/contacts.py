"""Find when objects meet the floor, walls and each other, from their ways.

On the floor as in `impacts`. Sideways an object moves at constant speed between contacts, so each of these is
where two lines meet.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soundstage.evaluation.detectors.impacts import CLEAR_SPEED, meetings_of
from soundstage.evaluation.detectors.objects import track_objects
from soundstage.evaluation.detectors.tracking import Track
from soundstage.evaluation.observation import Observation

FAINT_TURN, CLEAR_TURN = 0.10, 0.22  # heights/s by which a velocity changes
REACH = 7  # frames on each side that a fit may use
SAME = 0.05  # s within which contacts of two objects are one
GRID = 0.05  # frames, of the search for the meeting point
FLIES = 0.06  # picture heights between the highest and the lowest place of an object that bounces

Series = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Contact:
    """A moment at which something hits something."""

    time: float  # s
    x: float  # picture heights, of the centre of the object, or between both
    is_clear: bool  # whether a viewer would expect a sound


class _Turn(NamedTuple):
    """Two lines that meet."""

    time: float
    x: float
    change: float  # heights/s


def find_contacts(seen: Observation) -> tuple[Contact, ...]:
    """List the contacts of all objects in order."""
    found: list[Contact] = []
    for track in seen.find(track_objects).values():
        found += _of_one(seen, track)
    joined: list[Contact] = []
    for contact in sorted(found, key=lambda contact: contact.time):
        if joined and contact.time - joined[-1].time < SAME:
            before = joined.pop()
            contact = Contact(
                time=(before.time + contact.time) / 2,
                x=(before.x + contact.x) / 2,
                is_clear=before.is_clear or contact.is_clear,
            )
        joined.append(contact)
    return tuple(joined)


def _of_one(seen: Observation, track: Track) -> list[Contact]:
    shown = track.visible.numpy()
    times, x, foot = (
        np.asarray(series, dtype=np.float64)[shown] for series in (seen.times, track.x, track.foot)
    )
    if len(times) < 2 * REACH:
        return []
    contacts = [
        Contact(time=turn.time, x=turn.x, is_clear=turn.change >= CLEAR_TURN and _within(turn.time, times))
        for turn in _turns(times, x)
    ]
    if np.ptp(np.percentile(foot, (5, 95))) > FLIES:
        contacts += [
            Contact(
                time=meeting.time,
                x=float(np.interp(meeting.time, times, x)),
                is_clear=meeting.speed_in >= CLEAR_SPEED and _within(meeting.time, times),
            )
            for meeting in meetings_of(times, foot)
        ]
    return contacts


def _within(time: float, times: Series) -> bool:
    """Whether a moment has two frames on either side."""
    return bool(times[1] < time < times[-2])


def _turns(times: Series, x: Series) -> list[_Turn]:
    """Find where the velocity jumps: the strongest first, none beside another."""
    step = float(np.median(np.diff(times)))
    found: list[_Turn] = []
    candidates = []
    for index in range(3, len(x) - 3):
        turn = _fit(times, x, float(times[index]), step)
        if turn is not None and turn.change >= FAINT_TURN:
            candidates.append(turn)
    for turn in sorted(candidates, key=lambda turn: -turn.change):
        if all(abs(turn.time - other.time) > 3 * step for other in found):
            found.append(turn)
    return found


def _fit(times: Series, x: Series, guess: float, step: float) -> _Turn | None:
    """Let two lines meet within half a frame of a guess; None where one line does as well."""
    near = np.abs(times - guess) < (REACH + 0.5) * step
    t, y = times[near] - guess, x[near]
    trials = np.arange(-0.5, 0.5, GRID) * step
    offset = t - trials[:, None]
    design = np.stack((np.ones_like(offset), np.minimum(offset, 0), np.maximum(offset, 0)), -1)
    solution = np.linalg.pinv(design) @ y[:, None]
    error = np.square(y - (design @ solution)[..., 0]).sum(1)
    best = int(error.argmin())
    line = np.polyfit(t, y, 1)
    straight = float(np.square(y - np.polyval(line, t)).sum())
    if straight < 4 * float(error[best]) + 1e-7:
        return None
    level, before, after = solution[best, :, 0]
    return _Turn(guess + float(trials[best]), float(level), abs(float(after - before)))
