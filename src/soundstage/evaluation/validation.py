"""Measure the measuring: what the detectors say about clips whose truth is known.

The clips are the world's own, written to MP4 and read back, as they are and with the sound shifted by known
amounts. A result of a model means as much as the detector's own error beside it allows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from soundstage.data.world.kind import Event
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation.cases import Case
from soundstage.evaluation.detectors.impacts import CLEAR_SPEED, find_impacts
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.matching import match_times
from soundstage.evaluation.metrics.synchrony import differences
from soundstage.evaluation.observation import Observation, observe
from soundstage.evaluation.sources import write_world

SHIFTS = (-0.12, -0.04, 0.04, 0.12)  # s
NEAR = 0.06  # s within which a detected event is the true one
AT_END = 0.1  # s before the end in which events are not asked for


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the validation: what a detector says where the truth is known."""

    title: str
    truth: float
    measured: float
    unit: str
    kind: str = ""  # of scene


def validate(cases: Sequence[Case], config: WorldConfig) -> list[Check]:
    """Try the detectors of times on some of the world's clips, and on the same with shifted sound."""
    with TemporaryDirectory() as folder:
        return [*_check_times(cases, config, Path(folder)), *_check_shifts(cases, config, Path(folder))]


def _check_times(cases: Sequence[Case], config: WorldConfig, folder: Path) -> Iterator[Check]:
    path = folder / "clip.mp4"
    seen: list[tuple[Observation, tuple[Event, ...]]] = []
    for case in cases:
        write_world(case, path, config=config)
        assert case.scene is not None
        seen.append((observe(path), case.scene.events_before(config.duration)))
    for what, times in (("impact", _impact_times), ("onset", _onset_times)):
        yield from _compare(what, seen, times, config.duration)


def _impact_times(clip: Observation) -> list[tuple[float, bool]]:
    return [(impact.time, impact.is_clear) for impact in clip.find(find_impacts)]


def _onset_times(clip: Observation) -> list[tuple[float, bool]]:
    return [(onset.time, onset.is_clear) for onset in clip.find(find_onsets)]


def _compare(
    what: str,
    clips: Sequence[tuple[Observation, tuple[Event, ...]]],
    times: Callable[[Observation], list[tuple[float, bool]]],
    duration: float,
) -> Iterator[Check]:
    """Compare detected with true times."""
    errors: list[float] = []
    missed = wanted = imagined = found = 0
    for clip, events in clips:
        detected = times(clip)
        pairs = match_times([event.time for event in events], [time for time, _ in detected], NEAR)
        errors += [1000 * pair.difference for pair in pairs]
        hit = {pair.first for pair in pairs}
        real = {pair.second for pair in pairs}
        for index, event in enumerate(events):
            if event.strength >= CLEAR_SPEED and event.time < duration - AT_END:
                wanted += 1
                missed += index not in hit
        for index, (_, is_clear) in enumerate(detected):
            found += is_clear
            imagined += is_clear and index not in real
    error = np.array(errors or [np.nan])
    yield Check(title=f"{what} time, mean error", truth=0.0, measured=float(error.mean()), unit="ms")
    yield Check(
        title=f"{what} time, mean absolute error", truth=0.0, measured=float(np.abs(error).mean()), unit="ms"
    )
    yield Check(title=f"{what}s missed, share", truth=0.0, measured=missed / max(wanted, 1), unit="")
    yield Check(title=f"{what}s imagined, share", truth=0.0, measured=imagined / max(found, 1), unit="")


def _check_shifts(cases: Sequence[Case], config: WorldConfig, folder: Path) -> Iterator[Check]:
    path = folder / "shifted.mp4"
    for shift in SHIFTS:
        delays: list[float] = []
        for case in cases:
            write_world(case, path, config=config, shift=shift)
            delays += [row[0] for row in differences(observe(path), {})]
        measured = float(np.median(delays or [np.nan]))
        title = f"median delay of sound where it is {1000 * shift:+.0f} ms"
        yield Check(title=title, truth=1000 * shift, measured=measured, unit="ms")
