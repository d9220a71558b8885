"""Whether the file itself keeps picture and sound together."""

from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, mean_magnitude


def start_difference(seen: Observation, _: Expected) -> Rows:
    """By how many milliseconds the sound track starts after the picture."""
    timing = seen.timing
    return [] if timing.audio_start is None else [(1000 * (timing.audio_start - timing.video_start),)]


def length_difference(seen: Observation, _: Expected) -> Rows:
    """By how many milliseconds the sound track is longer than the picture."""
    timing = seen.timing
    return (
        [] if timing.audio_duration is None else [(1000 * (timing.audio_duration - timing.video_duration),)]
    )


METRICS: dict[str, Metric] = {
    "container_offset": Metric(
        title="start of sound against picture",
        better="zero",
        evidence=start_difference,
        pool=mean_magnitude,
        unit="ms",
        digits=2,
    ),
    "container_length": Metric(
        title="length of sound against picture",
        better="zero",
        evidence=length_difference,
        pool=mean_magnitude,
        unit="ms",
        digits=2,
    ),
}
