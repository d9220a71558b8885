"""Whether the clip shows and sounds what the caption says."""

from collections.abc import Callable

from soundstage.evaluation.detectors.floor import find_floor
from soundstage.evaluation.detectors.motion import find_direction
from soundstage.evaluation.detectors.objects import track_objects
from soundstage.evaluation.detectors.silhouette import find_colour, find_shape, find_size
from soundstage.evaluation.detectors.timbre import find_timbre
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, mean

ONE_OBJECT = ("bounce", "varied")  # kinds of scenes
ON_A_FLOOR = ("bounce", "varied", "off-screen", "silent")


def label_metric(
    title: str,
    attribute: str,
    detector: Callable[[Observation], str | None],
    kinds: tuple[str, ...] = ONE_OBJECT,
) -> Metric:
    """Make the metric that compares one attribute of the caption with what is found.

    Nothing found is wrong; nothing promised is not judged.
    """

    def evidence(seen: Observation, expected: Expected) -> Rows:
        if attribute not in expected:
            return []
        return [(float(seen.find(detector) == expected[attribute]),)]

    return Metric(title=title, better="high", evidence=evidence, pool=mean, kinds=kinds)


def colours_found(seen: Observation, expected: Expected) -> Rows:
    """Whether objects of exactly the colours that are said are seen."""
    if "colours" not in expected:
        return []
    return [(float(set(expected["colours"].split()) == set(seen.find(track_objects))),)]


METRICS: dict[str, Metric] = {
    "colours": Metric(
        title="objects of the colours as said",
        better="high",
        evidence=colours_found,
        pool=mean,
        kinds=("objects",),
    ),
    "colour": label_metric("colour as said", "colour", find_colour),
    "shape": label_metric("shape as said", "shape", find_shape),
    "size": label_metric("size as said", "size", find_size),
    "floor": label_metric("floor looks as said", "material", find_floor, kinds=ON_A_FLOOR),
    "timbre": label_metric("floor sounds as said", "material", find_timbre),
    "direction": label_metric("direction as said", "direction", find_direction),
}
