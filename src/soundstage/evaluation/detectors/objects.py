"""Follow several objects of different colours, one found after the other.

The strongest colour among what moves gives the first object, as `tracking` follows it; what lies within its
outline then counts no more, whatever its colour, for marks are painted on what rolls; and so on.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from soundstage.data.world.kind import COLOURS
from soundstage.evaluation.detectors.tracking import (
    NOISE,
    SAMPLE_EVERY,
    Coverage,
    PerFrame,
    Track,
    colour_votes,
    coverage_of,
    distance_to_still,
    measure_track,
    near_centre,
    still_background,
)
from soundstage.evaluation.observation import Observation, Pictures

MOST = 3  # objects
LEAST_VOTES = 0.10  # of the votes for the strongest colour, that another must have
LEAST_SEEN = 0.25  # share of frames in which an object must be seen
WHITE_SEEN = 0.6  # the same for white
LEAST_AREA = 0.015  # heights squared: half of the smallest object
LEAST_WHITE = 0.25  # the same for white, the colour of marks
MARK = "white"
EDGE = 0.04  # share of an outline that lies beyond each edge
REACH = 0.85  # radius within which an object lies, over the root of its area; of a ring it is the most

Mask = Bool[Tensor, "frames height width"]


def track_objects(seen: Observation) -> dict[str, Track]:
    """Find up to three objects: their colours' names and their ways."""
    pictures = seen.pictures
    free = torch.ones(pictures.shape[:3], dtype=torch.bool)
    tried: list[str] = [MARK]  # last: before that, marks on the others would be taken for it
    found: dict[str, Track] = {}
    most = max(_votes(pictures, free).values())
    while len(found) < MOST:
        votes = {name: vote for name, vote in _votes(pictures, free).items() if name not in tried}
        name = max(votes, key=lambda one: votes[one], default=MARK)
        if name == MARK or votes[name] <= LEAST_VOTES * most:
            break
        tried.append(name)
        track = _follow(pictures, name, free, found)
        if track is not None:
            found[name] = track
            free = free & ~_disc(track)
    if len(found) < MOST and _votes(pictures, free)[MARK] > LEAST_WHITE * most:
        track = _follow(pictures, MARK, free, found)
        if track is not None:
            found[MARK] = track
    background = still_background(pictures, *map(_rgb, found)) if found else pictures.median(0).values
    changed = ((distance_to_still(pictures, background) - NOISE) / (3 * NOISE)).clamp(0, 1)
    return {name: _outlined(name, found, changed) for name in found}


def _rgb(name: str) -> Float[Tensor, "3"]:
    return torch.tensor(COLOURS[name], dtype=torch.float32)


def _votes(pictures: Pictures, free: Mask) -> dict[str, float]:
    """Count for each colour what moves and is not explained yet."""
    palette = torch.stack([_rgb(name) for name in COLOURS])
    votes = colour_votes(pictures[::SAMPLE_EVERY], palette, free[::SAMPLE_EVERY])
    return dict(zip(COLOURS, votes.tolist(), strict=True))


def _follow(pictures: Pictures, name: str, free: Mask, besides: Iterable[str]) -> Track | None:
    """Follow what has a colour; None where that is too little."""
    background = still_background(pictures, _rgb(name), *map(_rgb, besides))
    cover = coverage_of(pictures, background, _rgb(name)) * free
    track = measure_track(cover * near_centre(cover), _rgb(name), background, pictures.shape[1])
    area = track.area[track.visible]
    least_seen = WHITE_SEEN if name == MARK else LEAST_SEEN
    is_object = len(area) >= least_seen * len(pictures) and float(area.median()) >= LEAST_AREA
    return track if is_object else None


def _away(track: Track) -> Coverage:
    """Distance of every pixel from an object's centre, in picture heights; infinite where it is not seen."""
    _, height, width = track.coverage.shape
    rows = (torch.arange(height, dtype=torch.float32) + 0.5)[:, None] / height
    columns = (torch.arange(width, dtype=torch.float32) + 0.5) / height
    away = torch.hypot(columns - track.x[:, None, None], rows - track.y[:, None, None])
    return torch.where(track.visible[:, None, None], away, math.inf)


def _radius(track: Track) -> float:
    area = float(track.area[track.visible].quantile(0.9))
    return math.sqrt(area) * REACH


def _disc(track: Track) -> Mask:
    """Mark where an object is."""
    return _away(track) < 1.15 * _radius(track)


def _outlined(name: str, tracks: dict[str, Track], changed: Coverage) -> Track:
    """Place an object by the edges of all that is not background there: marks on it change its colour."""
    track = tracks[name]
    mine = _away(track)
    inside = mine < _radius(track)
    for key, other in tracks.items():
        if key != name:
            inside &= mine < _away(other)
    return replace(track, x=torch.where(track.visible, _middle(changed * inside), track.x))


def _middle(cover: Coverage) -> PerFrame:
    """Half-way between the left and the right edge.

    The edges are those between which nearly all covered columns lie; a column is covered as much as its most
    covered pixel. So a stray pixel moves them little.
    """
    below = cover.amax(1).cumsum(1)  # (frames, width)
    total = below[:, -1:].clamp_min(1e-6)
    return (_crossing(below, total * EDGE) + _crossing(below, total * (1 - EDGE))) / 2 / cover.shape[1]


def _crossing(below: Float[Tensor, "frames width"], level: Float[Tensor, "frames 1"]) -> PerFrame:
    """Place, in pixels, at which a rising curve reaches a level."""
    place = torch.searchsorted(below, level).clamp(max=below.shape[1] - 1)
    upper = below.gather(1, place)
    lower = torch.where(place > 0, below.gather(1, (place - 1).clamp_min(0)), 0.0)
    part = ((level - lower) / (upper - lower).clamp_min(1e-6)).clamp(0, 1)
    return (place + part)[:, 0]
