"""Pair what is seen with what is heard: one to one, in order, as many pairs as possible, then the closest."""

from collections.abc import Sequence
from typing import NamedTuple


class Pair(NamedTuple):
    """One event of each list."""

    first: int  # index
    second: int  # index
    difference: float  # second minus first, s


def match_times(first: Sequence[float], second: Sequence[float], tolerance: float) -> list[Pair]:
    """Pair two ascending lists of times.

    One to one, so that a sound track full of onsets cannot match everything; by dynamic programming, so that
    the nearest neighbour of one event is never taken away from another for which it is the only one.

    Args:
        tolerance: Largest difference of a pair in seconds.
    """
    # best[i][j]: (pairs, minus total difference) of the first i and j events
    best = [[(0, 0.0)] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first, start=1):
        for j, other in enumerate(second, start=1):
            best[i][j] = max(best[i - 1][j], best[i][j - 1])
            if abs(other - one) <= tolerance:
                pairs, cost = best[i - 1][j - 1]
                best[i][j] = max(best[i][j], (pairs + 1, cost - abs(other - one)))
    found: list[Pair] = []
    i, j = len(first), len(second)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found.append(Pair(i, j, second[j] - first[i]))
    return found[::-1]
