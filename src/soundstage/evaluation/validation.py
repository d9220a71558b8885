"""Measure the measuring: what the detectors say about clips whose truth is known.

The clips are the world's own, written to MP4 and read back, as they are and with the sound shifted by known
amounts. A result of a model means as much as the detector's own error beside it allows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from soundstage.data.world.kind import Event
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation.cases import Case
from soundstage.evaluation.detectors.ambience import find_heard_ambience, find_seen_ambience
from soundstage.evaluation.detectors.events import EVENTS, seen_events
from soundstage.evaluation.detectors.floor import find_floor
from soundstage.evaluation.detectors.impacts import CLEAR_SPEED
from soundstage.evaluation.detectors.motion import find_direction
from soundstage.evaluation.detectors.mouth import find_face_colour, find_face_place
from soundstage.evaluation.detectors.notes import find_notes
from soundstage.evaluation.detectors.notes_bars import find_struck_bars
from soundstage.evaluation.detectors.objects import track_objects
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.detectors.silhouette import find_colour, find_shape, find_size
from soundstage.evaluation.detectors.speech import find_lip_sync, find_voice
from soundstage.evaluation.detectors.speech_syllables import find_syllables
from soundstage.evaluation.detectors.strikes import find_pad_hits
from soundstage.evaluation.detectors.timbre import find_timbre
from soundstage.evaluation.matching import match_times
from soundstage.evaluation.metrics.correspondence import METRICS as CORRESPONDENCE
from soundstage.evaluation.metrics.correspondence import curve
from soundstage.evaluation.metrics.synchrony import differences
from soundstage.evaluation.observation import Observation, observe
from soundstage.evaluation.sources import write_world

SHIFTS = (-0.12, -0.04, 0.04, 0.12)  # s
NUM_SHIFTED = 4  # clips whose sound is shifted
NEAR = 0.06  # s within which a detected event is the true one
AT_END = 0.15  # s at both ends in which events are not asked for
DULL = {"impact": CLEAR_SPEED, "collision": 0.2}
"""What happens, to the strength below which it is not asked for."""

Facts = Mapping[str, Any]
Answer = Callable[[Observation], Any]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the validation: what a detector says where the truth is known."""

    title: str
    truth: float
    measured: float
    unit: str
    kind: str = ""  # of scene


@dataclass(frozen=True)
class Known:
    """An attribute that a detector names and the world knows."""

    title: str
    found: Answer
    true: Callable[[Facts], Any]


def _ambience(answer: Answer, attribute: str) -> Answer:
    return lambda seen: getattr(seen.find(answer), attribute, None)


def _fact(name: str) -> Callable[[Facts], Any]:
    return lambda facts: facts[name]


OF_ONE_OBJECT = (
    Known("colour", find_colour, lambda facts: facts["colour"]),
    Known("shape", find_shape, lambda facts: facts["shape"]),
    Known("size", find_size, lambda facts: facts["size"]),
    Known("floor by its looks", find_floor, lambda facts: facts["floor"]),
    Known("floor by its sound", find_timbre, lambda facts: facts["floor"]),
    Known("direction", find_direction, lambda facts: facts["direction"]),
)
KNOWN: dict[str, tuple[Known, ...]] = {
    "bounce": OF_ONE_OBJECT,
    "varied": OF_ONE_OBJECT,
    "objects": (
        Known(
            "colours of all objects",
            lambda seen: set(seen.find(track_objects)),
            lambda facts: {one["colour"] for one in facts["objects"]},
        ),
    ),
    "face": (
        Known("colour", find_face_colour, lambda facts: facts["colour"]),
        Known("place", find_face_place, lambda facts: facts["place"]),
        Known("voice", find_voice, lambda facts: facts["voice"]),
        Known(
            "syllables",
            lambda seen: " ".join(one.text for one in seen.find(find_syllables)),
            lambda facts: facts["words"],
        ),
    ),
    "ambience": tuple(
        Known(f"{name} by its {sense}", _ambience(answer, name), _fact(name))
        for sense, answer in (("looks", find_seen_ambience), ("sound", find_heard_ambience))
        for name in ("element", "level")
    ),
    "pad": (
        Known(
            "order of the pads' colours",
            lambda seen: [hit.colour for hit in seen.find(find_pad_hits)],
            lambda facts: facts["order"],
        ),
    ),
    "xylophone": (
        Known(
            "notes by ear", lambda seen: [n.name for n in seen.find(find_notes)], lambda facts: facts["notes"]
        ),
        Known(
            "notes by eye",
            lambda seen: [bar.name for bar in seen.find(find_struck_bars)],
            lambda facts: facts["notes"],
        ),
    ),
}
"""Kind of scene to what is named in it."""


def validate(cases: Sequence[Case], config: WorldConfig) -> list[Check]:
    """Try the detectors on some of the world's clips of one kind, and on the same with shifted sound."""
    if not cases:
        return []
    kind = cases[0].kind
    with TemporaryDirectory() as folder:
        clips = [(_written(case, config, Path(folder)), case) for case in cases]
        checks = [*_check_names(kind, clips)]
        if kind in EVENTS:
            checks += _check_times(kind, clips, config.duration)
        if kind in EVENTS or kind == "face":
            checks += _check_shifts(kind, cases[:NUM_SHIFTED], config, Path(folder))
    return checks


def _written(case: Case, config: WorldConfig, folder: Path, shift: float = 0.0) -> Observation:
    """Write the world's own clip and read it back."""
    path = folder / "clip.mp4"
    write_world(case, path, config=config, shift=shift)
    return observe(path)


def _check_names(kind: str, clips: Sequence[tuple[Observation, Case]]) -> Iterator[Check]:
    """Count how often each attribute is named right."""
    for known in KNOWN.get(kind, ()):
        right = []
        for seen, case in clips:
            assert case.scene is not None
            right.append(known.found(seen) == known.true(case.scene.to_dict(seen.duration)))
        share = float(np.mean(right))
        yield Check(title=f"{known.title} named right, share", truth=1.0, measured=share, unit="", kind=kind)


def _check_times(kind: str, clips: Sequence[tuple[Observation, Case]], duration: float) -> Iterator[Check]:
    """Compare the moments that are seen and heard with the true ones."""
    for what in ("seen", "heard"):
        found = []
        for clip, case in clips:
            assert case.scene is not None
            events = [event for event in case.scene.events_before(duration) if getattr(event, what)]
            if what == "seen":
                times = [(one.time, one.is_clear) for one in seen_events(clip, {"kind": kind})]
            else:
                times = [(onset.time, onset.is_clear) for onset in clip.find(find_onsets)]
            found.append((times, events))
        yield from _compare(kind, "event" if what == "seen" else "onset", found, duration)


def _compare(
    kind: str,
    what: str,
    clips: Sequence[tuple[Sequence[tuple[float, bool]], Sequence[Event]]],
    duration: float,
) -> Iterator[Check]:
    """Compare detected with true times."""
    errors: list[float] = []
    missed = wanted = imagined = found = 0
    for detected, events in clips:
        pairs = match_times([event.time for event in events], [time for time, _ in detected], NEAR)
        errors += [1000 * pair.difference for pair in pairs]
        hit = {pair.first for pair in pairs}
        real = {pair.second for pair in pairs}
        for index, event in enumerate(events):
            is_clear = event.strength >= DULL.get(event.what, 0.0)
            if is_clear and AT_END < event.time < duration - AT_END:
                wanted += 1
                missed += index not in hit
        for index, (_, is_clear) in enumerate(detected):
            found += is_clear
            imagined += is_clear and index not in real
    error = np.array(errors or [np.nan])

    def check(title: str, measured: float, unit: str = "") -> Check:
        return Check(title=title, truth=0.0, measured=float(measured), unit=unit, kind=kind)

    yield check(f"{what} time, mean error", error.mean(), "ms")
    yield check(f"{what} time, mean absolute error", np.abs(error).mean(), "ms")
    yield check(f"{what}s missed, share", missed / max(wanted, 1))
    yield check(f"{what}s imagined, share", imagined / max(found, 1))


def _check_shifts(kind: str, cases: Sequence[Case], config: WorldConfig, folder: Path) -> Iterator[Check]:
    """Shift the sound by known amounts and measure the delay in every way that there is."""
    for shift in SHIFTS:
        delays: list[float] = []
        curves: list[tuple[float | int, ...]] = []
        for case in cases:
            clip = _written(case, config, folder, shift)
            if kind == "face":
                sync = clip.find(find_lip_sync)
                delays += [] if sync is None else [1000 * sync.lag]
            else:
                delays += [row[0] for row in differences(clip, {"kind": kind})]
            curves += curve(clip, {})
        lag = CORRESPONDENCE["activity_lag"].pool(np.array(curves)) if curves else np.nan
        for title, measured in (
            ("median delay of sound", float(np.median(delays or [np.nan]))),
            ("lag of sound behind movement", lag),
        ):
            yield Check(
                title=f"{title} where it is {1000 * shift:+.0f} ms",
                truth=1000 * shift,
                measured=measured,
                unit="ms",
                kind=kind,
            )
