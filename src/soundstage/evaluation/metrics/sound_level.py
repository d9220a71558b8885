"""How loud the sound is, and whether it is cut off or missing; for any clip."""

import math

import torch
import torch.nn.functional as F

from soundstage.evaluation.expectation import Expected
from soundstage.evaluation.metrics.metric import Metric
from soundstage.evaluation.observation import SAMPLE_RATE, Observation
from soundstage.evaluation.statistics import Rows, mean

CLIPPED = 0.999  # of full scale
SILENT = -65.0  # dBFS, a little under the world's room
QUIETEST = -100.0  # dBFS that digital silence counts as
WINDOW = SAMPLE_RATE // 50  # samples, 20 ms


def loudness(seen: Observation, _: Expected) -> Rows:
    """Root mean square of both channels in dB below full scale."""
    power = float(seen.waveform.square().mean())
    return [(max(10 * math.log10(power + 1e-12), QUIETEST),)]


def clipping(seen: Observation, _: Expected) -> Rows:
    """Share of the file's samples at full scale."""
    waveform = seen.waveform if seen.clip.waveform is None else seen.clip.waveform
    return [(float((waveform.abs() >= CLIPPED).float().mean()),)]


def silence(seen: Observation, _: Expected) -> Rows:
    """Share of 20 ms windows in which next to nothing is heard."""
    power = F.avg_pool1d(seen.waveform.square().mean(0)[None, None], WINDOW)[0, 0]
    return [(float((10 * torch.log10(power + 1e-12) < SILENT).float().mean()),)]


METRICS: dict[str, Metric] = {
    "loudness": Metric(
        title="loudness", better="reference", evidence=loudness, pool=mean, unit="dBFS", digits=1
    ),
    "clipping": Metric(title="samples at full scale, share", better="low", evidence=clipping, pool=mean),
    "silence": Metric(title="silence, share of time", better="reference", evidence=silence, pool=mean),
}
