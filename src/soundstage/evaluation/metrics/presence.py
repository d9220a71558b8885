"""Whether a scene that shall be silent is, and one that shall be out of sight is."""

from soundstage.evaluation.detectors.presence import find_presence
from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import Observation
from soundstage.evaluation.statistics import Rows, mean

QUIET = -45.0  # dB of full scale; the faintest event of the world is louder for at least 20 ms
MOVES, RESTS = (
    0.001,
    0.003,
)  # share of the picture that moves if something is shown, and at most if nothing is


def silent(seen: Observation, _: Expected) -> Rows:
    """Whether something is seen to move and nothing is heard."""
    presence = seen.find(find_presence)
    return [(float(presence.loudest < QUIET and presence.moving > MOVES),)]


def unseen(seen: Observation, _: Expected) -> Rows:
    """Whether something is heard and nothing but the camera moves."""
    presence = seen.find(find_presence)
    return [(float(presence.loudest > QUIET and presence.moving < RESTS),)]


METRICS: dict[str, Metric] = {
    "silent": Metric(title="seen but silent", better="high", evidence=silent, pool=mean, kinds=("silent",)),
    "unseen": Metric(
        title="heard but out of sight", better="high", evidence=unseen, pool=mean, kinds=("off-screen",)
    ),
}
