"""Follow several objects of different colours, one found after the other.

The strongest colour among what moves gives the first object, as `tracking` follows it; what lies within its
outline then counts no more, whatever its colour, for marks are painted on what rolls; and so on.
"""

import math
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
    Still,
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
LEAST_AREA = 0.015  # heights squared: half of the smallest object
MARK, MARKED = "white", 0.35  # colour of marks; votes of another colour that make it one, against its own
EDGE = 0.04  # share of an outline that lies beyond each edge
REACH = 0.85  # radius within which an object lies, over the root of its area; of a ring it is the most

Mask = Bool[Tensor, "frames height width"]


def track_objects(seen: Observation) -> dict[str, Track]:
    """Find up to three objects: their colours' names and their ways."""
    pictures = seen.pictures
    free = torch.ones(pictures.shape[:3], dtype=torch.bool)
    names: list[str] = []
    found: dict[str, Track] = {}
    strongest = 0.0
    for _ in range(MOST):
        name, votes = _next_colour(pictures, free, names)
        strongest = max(strongest, votes)
        if votes <= LEAST_VOTES * strongest:
            break
        track = _follow(pictures, name, free, still_background(pictures, _rgb(name), *map(_rgb, found)))
        if track is not None and name == MARK:
            name, track = _unmarked(pictures, free, track, names)
        names.append(name)
        if track is not None:
            found[name] = track
            free = free & ~_disc(track)
    background = still_background(pictures, *map(_rgb, found)) if found else pictures.median(0).values
    changed = ((distance_to_still(pictures, background) - NOISE) / (3 * NOISE)).clamp(0, 1)
    return {name: _outlined(name, found, changed) for name in found}


def _rgb(name: str) -> Float[Tensor, "3"]:
    return torch.tensor(COLOURS[name], dtype=torch.float32)


def _next_colour(pictures: Pictures, free: Mask, without: list[str]) -> tuple[str, float]:
    """Choose the colour of most of what moves and is not explained yet, with its votes."""
    palette = torch.stack([_rgb(name) for name in COLOURS])
    votes = colour_votes(pictures[::SAMPLE_EVERY], palette, free[::SAMPLE_EVERY])
    counted = {name: float(vote) for name, vote in zip(COLOURS, votes, strict=True) if name not in without}
    best = max(counted, key=lambda name: counted[name])
    return best, counted[best]


def _follow(pictures: Pictures, name: str, free: Mask, background: Still) -> Track | None:
    """Follow what has a colour; None where that is too little."""
    cover = coverage_of(pictures, background, _rgb(name)) * free
    track = measure_track(cover * near_centre(cover), _rgb(name), background, pictures.shape[1])
    area = track.area[track.visible]
    is_object = len(area) >= LEAST_SEEN * len(pictures) and float(area.median()) >= LEAST_AREA
    return track if is_object else None


def _unmarked(pictures: Pictures, free: Mask, track: Track, without: list[str]) -> tuple[str, Track]:
    """Look whether what seems white is a mark on something of another colour."""
    inside = free & _disc(track)
    palette = torch.stack([_rgb(name) for name in COLOURS])
    votes = dict(zip(COLOURS, colour_votes(pictures, palette, inside).tolist(), strict=True))
    others = {name: vote for name, vote in votes.items() if name != MARK and name not in without}
    best = max(others, key=lambda name: others[name])
    if others[best] < MARKED * votes[MARK]:
        return MARK, track
    other = _follow(pictures, best, free, still_background(pictures, _rgb(best), _rgb(MARK)))
    return (MARK, track) if other is None else (best, other)


def _away(track: Track) -> Coverage:
    """Distance of every pixel from an object's centre, in picture heights; infinite where it is not seen."""
    _, height, width = track.coverage.shape
    rows = (torch.arange(height, dtype=torch.float32) + 0.5)[:, None] / height
    columns = (torch.arange(width, dtype=torch.float32) + 0.5) / height
    away = torch.hypot(columns - track.x[:, None, None], rows - track.y[:, None, None])
    return torch.where(track.visible[:, None, None], away, math.inf)


def _radius(track: Track) -> float:
    return float(track.area[track.visible].quantile(0.9)) ** 0.5 * REACH


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
