"""Whether a face says what its caption says, in the voice and from the place that it says, with its lips."""

from soundstage.evaluation.detectors.mouth import find_face_colour, find_face_place
from soundstage.evaluation.detectors.speech import find_lip_sync, find_voice
from soundstage.evaluation.detectors.speech_syllables import find_syllables, matched_syllables
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, mean, mean_magnitude, share

KINDS = ("face",)


def lags(seen: Observation, _: Expected) -> Rows:
    """Give by how many milliseconds the voice comes after the mouth."""
    sync = seen.find(find_lip_sync)
    return [] if sync is None else [(1000 * sync.lag,)]


def correlations(seen: Observation, _: Expected) -> Rows:
    """Give the correlation of opening and loudness; 0 where there is no moving mouth or no voice."""
    sync = seen.find(find_lip_sync)
    return [(0.0,)] if sync is None else [(sync.correlation,)]


def syllable_counts(seen: Observation, expected: Expected) -> Rows:
    """Count syllables that are right, and those said or wanted, whichever are more."""
    if "words" not in expected:
        return []
    wanted = expected["words"].split()
    heard = [one.text for one in seen.find(find_syllables)]
    return [(matched_syllables(heard, wanted), max(len(heard), len(wanted)))]


def _as_said(found: str | None, expected: Expected, name: str) -> Rows:
    return [(float(found == expected[name]),)] if name in expected else []


METRICS: dict[str, Metric] = {
    "lip_lag": Metric(
        title="voice behind the mouth, mean distance",
        better="low",
        evidence=lags,
        pool=mean_magnitude,
        unit="ms",
        digits=1,
        kinds=KINDS,
    ),
    "lip_bias": Metric(
        title="voice behind the mouth, mean",
        better="zero",
        evidence=lags,
        pool=mean,
        unit="ms",
        digits=1,
        kinds=KINDS,
    ),
    "lip_correlation": Metric(
        title="opening of the mouth and loudness, correlation",
        better="high",
        evidence=correlations,
        pool=mean,
        kinds=KINDS,
    ),
    "syllables": Metric(
        title="syllables as said",
        better="high",
        evidence=syllable_counts,
        pool=share,
        kinds=(*KINDS, "off-screen"),
    ),
    "voice": Metric(
        title="voice high or low as said",
        better="high",
        evidence=lambda seen, expected: _as_said(seen.find(find_voice), expected, "voice"),
        pool=mean,
        kinds=(*KINDS, "off-screen"),
    ),
    "face_colour": Metric(
        title="face has the colour that is said",
        better="high",
        evidence=lambda seen, expected: _as_said(seen.find(find_face_colour), expected, "colour"),
        pool=mean,
        kinds=KINDS,
    ),
    "face_place": Metric(
        title="face is at the place that is said",
        better="high",
        evidence=lambda seen, expected: _as_said(seen.find(find_face_place), expected, "place"),
        pool=mean,
        kinds=KINDS,
    ),
}
