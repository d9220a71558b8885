"""Say which way the object drifts."""

import numpy as np

from soundstage.evaluation.detectors.tracking import track_object
from soundstage.evaluation.observation import Observation

STILL = 0.08  # picture heights of drift over the clip that still count as none


def find_direction(seen: Observation) -> str | None:
    """Name the drift by the line that best fits the object's path; None where it is not seen."""
    track = seen.find(track_object)
    shown = track.visible.numpy()
    if shown.sum() < 3:
        return None
    times, x = seen.times.numpy()[shown], track.x.numpy()[shown]
    slope = np.polyfit(times, x, 1)[0]
    drift = float(slope * (times[-1] - times[0]))
    if abs(drift) < STILL:
        return "down"
    return "right" if drift > 0 else "left"
