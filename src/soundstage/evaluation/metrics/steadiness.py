"""Whether what should be still is still, and what should move moves."""

from soundstage.evaluation.detectors.tracking import track_object
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, mean

FROZEN = 0.15  # mean 8-bit steps between two frames below which nothing has changed
EMPTY = 0.02  # coverage below which a pixel shows the background


def flicker(seen: Observation, _: Expected) -> Rows:
    """Mean change of background pixels from frame to frame, in 8-bit steps."""
    if len(seen.pictures) < 2:
        return []
    free = seen.find(track_object).coverage < EMPTY
    both = (free[1:] & free[:-1])[..., None].expand_as(seen.pictures[1:])
    return [(float(seen.pictures.diff(dim=0).abs()[both].mean()),)] if bool(both.any()) else []


def frozen(seen: Observation, _: Expected) -> Rows:
    """Share of frames that are the frame before once more."""
    if len(seen.pictures) < 2:
        return []
    change = seen.pictures.diff(dim=0).abs().mean((1, 2, 3))
    return [(float((change < FROZEN).float().mean()),)]


def tracked(seen: Observation, _: Expected) -> Rows:
    """Share of frames in which an object is seen."""
    return [(float(seen.find(track_object).visible.float().mean()),)]


METRICS: dict[str, Metric] = {
    "tracked": Metric(title="object seen, share of frames", better="high", evidence=tracked, pool=mean),
    "flicker": Metric(
        title="flicker of the background", better="low", evidence=flicker, pool=mean, unit="of 255", digits=2
    ),
    "frozen": Metric(title="frozen frames, share", better="reference", evidence=frozen, pool=mean),
}
