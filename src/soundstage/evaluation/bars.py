"""What the embedded model should reach, and whether it does: the table of aims, filled in.

Each bar has two aims, for a model trained on a GPU and for one trained on a CPU only. Beside the model's
value stand those of the world's own clips through the model's codecs and as they are: what no transformer can
mend, and what no detector can see.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from soundstage.evaluation.results import CEILING, DUBBED, GENERATED, PICTURED, TRUTH, SuiteResult
from soundstage.evaluation.statistics import NOTHING, Estimate, Spread, estimate_of

Aim = Literal["least", "most", "magnitude"]
"""What the limit of a bar is: the least value, the largest, or the largest distance from zero."""
Measure = Callable[[SuiteResult, str], Estimate]
"""The value of one group, named by its title; without evidence where there is none."""

BOUNCE, FACE = ("bounce",), ("face",)
DROPS = ("impact_f1_80ms", "colour", "floor", "timbre", "shape", "size", "direction", "pan_correlation")
"""Metrics, all at best 1, that combinations never seen in training could lower."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One aim."""

    title: str
    measure: Measure
    gpu: float
    cpu: float
    aim: Aim = "least"
    unit: str = ""
    digits: int = 3
    group: str = GENERATED  # that is judged

    def is_met(self, value: float, limit: float) -> bool | None:
        """Whether a value reaches a limit; None where there is no value."""
        if not math.isfinite(value):
            return None
        if self.aim == "least":
            return value >= limit
        return (abs(value) if self.aim == "magnitude" else value) <= limit

    def written(self, limit: float) -> str:
        """Write a limit as people do."""
        return f"{'≥' if self.aim == 'least' else '≤'} {limit:g} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A bar with what was measured."""

    bar: Bar
    value: Estimate
    ceiling: Estimate
    truth: Estimate


def metric_of(name: str, kinds: Sequence[str]) -> Measure:
    """Take a metric over the clips of some kinds of scenes."""

    def measure(result: SuiteResult, title: str) -> Estimate:
        group = result.group(title)
        return NOTHING if group is None else group.estimate(name, kinds)

    return measure


def codec_of(name: str) -> Measure:
    """Take what the codecs lose; the same whichever group is asked for, so it has no ceiling."""

    def measure(result: SuiteResult, title: str) -> Estimate:
        return NOTHING if result.codec is None or title != GENERATED else result.codec.estimate(name)

    return measure


def drop(result: SuiteResult, title: str, *, over: Callable[..., np.ndarray]) -> Estimate:
    """Measure by how much `DROPS` are lower for unseen combinations than for seen ones.

    Args:
        over: How the drops of all metrics become one, along the first axis.
    """
    group = result.group(title)
    if group is None:
        return NOTHING
    drops, num_clips = [], 0
    for name in DROPS:
        seen, unseen = (group.spread(name, BOUNCE, unseen=which) for which in (False, True))
        if math.isfinite(seen.value) and math.isfinite(unseen.value):
            drops.append(np.append(seen.draws - unseen.draws, seen.value - unseen.value))
            num_clips = max(num_clips, sum(len(rows) > 0 for rows in group.rows(name, BOUNCE)))
    if not drops:
        return NOTHING
    joined = over(np.stack(drops), 0)
    return estimate_of(Spread(float(joined[-1]), joined[:-1]), num_clips, num_clips)


def _share(title: str, metric: str, gpu: float, cpu: float, kinds: Sequence[str] = BOUNCE) -> Bar:
    return Bar(title=title, measure=metric_of(metric, kinds), gpu=gpu, cpu=cpu)


BARS: tuple[Bar, ...] = (
    _share("impacts and onsets, F1 within 80 ms", "impact_f1_80ms", 0.95, 0.90),
    Bar(
        title="mean distance of sound and impact",
        measure=metric_of("sync_error", BOUNCE),
        gpu=15.0,
        cpu=25.0,
        aim="most",
        unit="ms",
        digits=1,
    ),
    Bar(
        title="mean delay of sound after impact",
        measure=metric_of("sync_bias", BOUNCE),
        gpu=5.0,
        cpu=8.0,
        aim="magnitude",
        unit="ms",
        digits=1,
    ),
    _share("colour as said", "colour", 0.99, 0.97),
    _share("floor looks as said", "floor", 0.99, 0.97),
    _share("floor sounds as said", "timbre", 0.99, 0.97),
    _share("shape as said", "shape", 0.95, 0.85),
    _share("size as said", "size", 0.95, 0.85),
    _share("direction as said", "direction", 0.95, 0.90),
    _share("stereo position and place, correlation", "pan_correlation", 0.95, 0.92),
    Bar(
        title="unseen combinations: mean drop in the above",
        measure=partial(drop, over=np.mean),
        gpu=0.03,
        cpu=0.08,
        aim="most",
    ),
    Bar(
        title="unseen combinations: largest drop",
        measure=partial(drop, over=np.max),
        gpu=0.03,
        cpu=0.08,
        aim="most",
    ),
    Bar(
        title="voice behind the mouth, mean distance",
        measure=metric_of("lip_lag", FACE),
        gpu=41.7,
        cpu=41.7,
        aim="most",
        unit="ms",
        digits=1,
    ),
    _share("mouth and loudness, correlation", "lip_correlation", 0.8, 0.6, FACE),
    _share("syllables as said", "syllables", 0.9, 0.6, FACE),
    _share("xylophone: notes heard as said", "notes", 0.95, 0.80, ("xylophone",)),
    _share("clock: ticks at the extremes, F1 within a frame", "ticks", 0.95, 0.80, ("clock",)),
    _share("silent captions obeyed", "silent", 0.95, 0.85, ("silent",)),
    _share("off-screen captions obeyed", "unseen", 0.95, 0.85, ("off-screen",)),
    Bar(
        title="sound for a true picture: F1 within 80 ms",
        measure=metric_of("impact_f1_80ms", BOUNCE),
        gpu=0.97,
        cpu=0.92,
        group=DUBBED,
    ),
    Bar(
        title="picture for a true sound: F1 within 80 ms",
        measure=metric_of("impact_f1_80ms", BOUNCE),
        gpu=0.97,
        cpu=0.92,
        group=PICTURED,
    ),
    Bar(title="video VAE: PSNR", measure=codec_of("psnr"), gpu=36.0, cpu=33.0, unit="dB", digits=1),
    Bar(
        title="video VAE: PSNR where things move",
        measure=codec_of("psnr_moving"),
        gpu=28.0,
        cpu=24.0,
        unit="dB",
        digits=1,
    ),
    Bar(title="audio VAE: log-mel L1", measure=codec_of("mel_l1"), gpu=0.07, cpu=0.09, aim="most"),
    Bar(
        title="vocoder: onset smear",
        measure=codec_of("onset_smear"),
        gpu=5.0,
        cpu=10.0,
        aim="most",
        unit="ms",
        digits=1,
    ),
    Bar(
        title="vocoder: pitch, mean distance",
        measure=codec_of("pitch_error"),
        gpu=10.0,
        cpu=10.0,
        aim="most",
        unit="cents",
        digits=1,
    ),
)


def judge(result: SuiteResult) -> list[Judged]:
    """Fill in the table."""
    return [
        Judged(
            bar=bar,
            value=bar.measure(result, bar.group),
            ceiling=bar.measure(result, CEILING),
            truth=bar.measure(result, TRUTH),
        )
        for bar in BARS
    ]
