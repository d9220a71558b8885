"""Whether instruments play what the caption says, and clocks tick where they should."""

from collections.abc import Sequence

from soundstage.evaluation.detectors.events import turn_moments
from soundstage.evaluation.detectors.notes import find_notes
from soundstage.evaluation.detectors.notes_bars import find_struck_bars
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.detectors.strikes import find_pad_hits
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.matching import match_times
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, f1, mean, share

AT_EXTREME = 0.0417  # s between a tick and a turn: one frame
AROUND = 0.1  # s before the first turn that is seen and after the last in which ticks are judged


def note_counts(heard: Sequence[str], expected: Expected) -> Rows:
    """Count the notes that are right, in order, and the more of those said and those found."""
    if "notes" not in expected:
        return []
    said = expected["notes"].split()
    return [(common_length(said, heard), max(len(said), len(heard)))]


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest sequence that both contain, perhaps with gaps."""
    best = [0] * (len(second) + 1)
    for one in first:
        before = 0
        for place, other in enumerate(second, start=1):
            before, best[place] = (
                best[place],
                before + 1 if one == other else max(best[place], best[place - 1]),
            )
    return best[-1]


def heard_notes(seen: Observation, expected: Expected) -> Rows:
    """Compare what is heard with the caption."""
    return note_counts([note.name for note in seen.find(find_notes)], expected)


def struck_bars(seen: Observation, expected: Expected) -> Rows:
    """Compare the bars that are struck with the caption."""
    return note_counts([bar.name for bar in seen.find(find_struck_bars)], expected)


def tick_counts(seen: Observation, _: Expected) -> Rows:
    """Count clear turns with a tick, clear turns, ticks at a turn, ticks while turns are seen."""
    turns = seen.find(turn_moments)
    clear = [turn.time for turn in turns if turn.is_clear]
    onsets = seen.find(find_onsets)
    ticks = [onset.time for onset in onsets if onset.is_clear]
    if turns:
        ticks = [tick for tick in ticks if turns[0].time - AROUND < tick < turns[-1].time + AROUND]
    heard = match_times(clear, [onset.time for onset in onsets], AT_EXTREME)
    placed = match_times(ticks, [turn.time for turn in turns], AT_EXTREME)
    return [(len(heard), len(clear), len(placed), len(ticks))]


def pad_colours(seen: Observation, expected: Expected) -> Rows:
    """Whether pads of exactly the colours that are said flash."""
    if "colours" not in expected:
        return []
    return [(float({hit.colour for hit in seen.find(find_pad_hits)} == set(expected["colours"].split())),)]


METRICS: dict[str, Metric] = {
    "ticks": Metric(
        title="ticks at the extremes, F1 within a frame",
        better="high",
        evidence=tick_counts,
        pool=f1,
        kinds=("clock",),
    ),
    "notes": Metric(
        title="notes heard as said",
        better="high",
        evidence=heard_notes,
        pool=share,
        kinds=("xylophone", "off-screen"),
    ),
    "bars": Metric(
        title="bars struck as said", better="high", evidence=struck_bars, pool=share, kinds=("xylophone",)
    ),
    "pad_colours": Metric(
        title="pads flash in the colours that are said",
        better="high",
        evidence=pad_colours,
        pool=mean,
        kinds=("pad",),
    ),
}
