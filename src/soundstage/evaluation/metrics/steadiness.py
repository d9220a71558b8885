"""Whether what should be still is still, and what should move moves; but for `tracked`, for any clip."""

from jaxtyping import Float
from torch import Tensor

from soundstage.evaluation.detectors.tracking import track_object
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, mean, share

FROZEN = 0.15  # mean 8-bit steps between two frames below which nothing has changed
EMPTY = 0.02  # coverage below which a pixel shows the background
BLOCK = 8  # pixels between the block edges of codecs; those of video VAEs lie on multiples of it
LAST, BEFORE = (
    3,
    9,
)  # frames at the end in which a flash is sought, and before them with which they are compared


def shimmer(seen: Observation, _: Expected) -> Rows:
    """Mean second difference over time, in 8-bit steps, of the stiller half of all pixels.

    A steady motion or a slow change of light has none; noise and flicker have.
    """
    pictures = seen.pictures
    if len(pictures) < 3:
        return []
    second = (pictures[2:] - 2 * pictures[1:-1] + pictures[:-2]).abs().mean((0, 3)).flatten() / 2
    return [(float(second.sort().values[: max(len(second) // 2, 1)].mean()),)]


def background_change(seen: Observation, _: Expected) -> Rows:
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


def blockiness(seen: Observation, _: Expected) -> Rows:
    """Mean step across the edges of 8 x 8 blocks, and across all other neighbours.

    Source: the ratio behind Wang, Bovik & Evans 2000, "Blind measurement of blocking artifacts in images".
    """
    pictures = seen.pictures
    if min(pictures.shape[1:3]) <= BLOCK:
        return []
    down, across = pictures.diff(dim=1).abs().mean((0, 2, 3)), pictures.diff(dim=2).abs().mean((0, 1, 3))
    on = [_edges(steps, at_edges=True) for steps in (down, across)]
    off = [_edges(steps, at_edges=False) for steps in (down, across)]
    return [(sum(on) / 2, sum(off) / 2)]


def _edges(steps: Float[Tensor, " n"], *, at_edges: bool) -> float:
    """Average the steps between pixels at the edges of blocks, or elsewhere."""
    places = [i for i in range(len(steps)) if ((i + 1) % BLOCK == 0) == at_edges]
    return float(steps[places].mean())


def end_flash(seen: Observation, _: Expected) -> Rows:
    """Largest step of a last frame's brightness from that of the frames before, in 8-bit steps."""
    bright = seen.pictures.mean((1, 2, 3))
    if len(bright) < 2 * LAST:
        return []
    usual = bright[-LAST - BEFORE : -LAST].median()
    return [(float((bright[-LAST:] - usual).abs().max()),)]


def tracked(seen: Observation, _: Expected) -> Rows:
    """Share of frames in which an object is seen."""
    return [(float(seen.find(track_object).visible.float().mean()),)]


METRICS: dict[str, Metric] = {
    "tracked": Metric(
        title="object seen, share of frames",
        better="high",
        evidence=tracked,
        pool=mean,
        kinds=("bounce", "varied"),
    ),
    "flicker": Metric(
        title="flicker of the background",
        better="low",
        evidence=background_change,
        pool=mean,
        unit="of 255",
        digits=2,
        kinds=("bounce", "varied"),
    ),
    "shimmer": Metric(
        title="flicker of the stiller half",
        better="low",
        evidence=shimmer,
        pool=mean,
        unit="of 255",
        digits=2,
    ),
    "frozen": Metric(title="frozen frames, share", better="reference", evidence=frozen, pool=mean),
    "blockiness": Metric(
        title="steps at block edges over other steps", better="reference", evidence=blockiness, pool=share
    ),
    "end_flash": Metric(
        title="flash at the end",
        better="reference",
        evidence=end_flash,
        pool=mean,
        unit="of 255",
        digits=2,
    ),
}
