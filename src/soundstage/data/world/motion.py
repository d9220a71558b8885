"""How an object bounces: exact parabolas between impacts, so every event time is known, not measured.

Lengths are in picture heights, x to the right and y down from the top left corner; times in seconds.
"""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

REST_SPEED = 0.35  # heights/s; a slower impact is silent and the object stays down
SLIDE_TIME = 0.2  # s; the sideways motion of an object at rest dies away with this time constant
SQUASH_TIME = 0.05  # s; how fast a squashed object gets its form back
SQUASH_PER_SPEED = 0.14  # flattening per height/s of impact speed
MAX_SQUASH = 0.26


@dataclass(frozen=True, kw_only=True)
class Impact:
    """One contact with the floor."""

    time: float
    x: float
    y: float  # of the point of contact
    speed: float  # downwards, at contact


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where an object is at one time and how flat."""

    x: float  # of the centre
    y: float  # of the centre
    squash: float  # 0 = its own form, 0.2 = a fifth lower and a little wider


@dataclass(frozen=True, kw_only=True)
class Motion:
    """A bounce with a sideways drift, given by its first impact; valid for any time from 0 on."""

    gravity: float  # heights/s^2
    restitution: float  # speed after an impact over speed before
    first_impact: float  # s
    first_speed: float  # heights/s, downwards, at the first impact
    start_x: float
    velocity_x: float  # heights/s, negative to the left
    ground: float  # y of the line of contact
    foot: float  # from the centre to the lowest point
    reach: tuple[float, float]  # the centre's leftmost and rightmost x; it turns round there

    @cached_property
    def _arcs(self) -> tuple[tuple[float, float], ...]:
        """Start time and upward speed of every flight; the first began before 0, the last never ends."""
        flight = 2 * self.first_speed / self.gravity
        arcs = [(self.first_impact - flight, self.first_speed)]
        time, speed = self.first_impact, self.first_speed
        while speed >= REST_SPEED:
            speed *= self.restitution
            arcs.append((time, speed))
            time += 2 * speed / self.gravity
        return (*arcs, (time, 0.0))

    @property
    def rest_time(self) -> float:
        """When the object stops bouncing."""
        return self._arcs[-1][0]

    @cached_property
    def impacts(self) -> tuple[Impact, ...]:
        """Every contact hard enough to be heard, in order, however late."""
        return tuple(
            Impact(time=start, x=self.x(start), y=self.ground, speed=before)
            for (_, before), (start, _) in zip(self._arcs[:-2], self._arcs[1:-1], strict=True)
        )

    def x(self, time: float) -> float:
        """Horizontal position of the centre."""
        after_rest = max(time - self.rest_time, 0.0)
        moving = min(time, self.rest_time) + SLIDE_TIME * -math.expm1(-after_rest / SLIDE_TIME)
        low, high = self.reach
        if high <= low:
            return (low + high) / 2
        phase = (self.start_x + self.velocity_x * moving - low) % (2 * (high - low))
        return low + min(phase, 2 * (high - low) - phase)

    def height(self, time: float) -> float:
        """Distance of the lowest point above the line of contact."""
        index = max(bisect.bisect_right(self._arcs, time, key=lambda arc: arc[0]) - 1, 0)
        start, speed = self._arcs[index]
        elapsed = time - start
        return max(speed * elapsed - self.gravity * elapsed**2 / 2, 0.0) if speed else 0.0

    def pose(self, time: float) -> Pose:
        """Position of the centre and the squash just after an impact."""
        index = bisect.bisect_right(self.impacts, time, key=lambda impact: impact.time) - 1
        squash = 0.0
        if index >= 0:
            impact = self.impacts[index]
            squash = min(SQUASH_PER_SPEED * impact.speed, MAX_SQUASH)
            squash *= math.exp(-(time - impact.time) / SQUASH_TIME)
        y = self.ground - self.height(time) - self.foot * (1 - squash)
        return Pose(x=self.x(time), y=y, squash=squash)

    def poses(self, times: Iterable[float]) -> list[Pose]:
        """Pose at each time."""
        return [self.pose(time) for time in times]
