"""Change of sample rate by a windowed sinc: band-limited, linear in phase, differentiable."""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import Waveform

_ZERO_CROSSINGS = 6  # of the sinc, on each side
_MOST_TAPS = 4_000_000  # of all phases together; rates with more in common need far fewer
_CHUNK = 16_384  # output samples computed at once
_ROLLOFF = 0.99  # pass band as a fraction of the lower Nyquist frequency


@functools.cache
def _kernel(source: int, target: int) -> tuple[Float[Tensor, "phases 1 taps"], int]:
    """Make one filter per output phase, and say how far it reaches to the left.

    `source` and `target` are coprime: output sample p of each group of `target` lies at input time p/target.
    """
    base = _ROLLOFF * min(source, target)
    reach = math.ceil(_ZERO_CROSSINGS * source / base)
    with torch.inference_mode(False):
        taps = torch.arange(-reach, reach + source, dtype=torch.float64, device="cpu") / source
        phases = torch.arange(target, dtype=torch.float64, device="cpu") / target
        times = ((taps - phases[:, None]) * base).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        window = torch.cos(times * math.pi / _ZERO_CROSSINGS / 2) ** 2
        return (torch.sinc(times) * window * base / source)[:, None], reach


def resample(waveform: Waveform, from_rate: int, to_rate: int) -> Float[Tensor, "b ch resampled"]:
    """Convert a waveform between sample rates given in Hz.

    The result has `ceil(samples * to_rate / from_rate)` samples; the signal counts as zero outside.

    Raises:
        RequestError: A rate is not positive.
    """
    if from_rate < 1 or to_rate < 1:
        raise RequestError(f"cannot resample from {from_rate} Hz to {to_rate} Hz; rates must be positive")
    if from_rate == to_rate:
        return waveform
    common = math.gcd(from_rate, to_rate)
    source, target = from_rate // common, to_rate // common
    batch, channels, samples = waveform.shape
    if source * target > _MOST_TAPS:
        flat = waveform.to(torch.promote_types(waveform.dtype, torch.float32)).reshape(-1, samples)
        return _directly(flat, source, target).reshape(batch, channels, -1)
    kernel, reach = _kernel(source, target)
    x = waveform.to(torch.promote_types(waveform.dtype, torch.float32)).reshape(-1, 1, samples)
    x = F.pad(x, (reach, reach + source))
    phases = F.conv1d(x, kernel.to(x), stride=source)  # (b ch, phases, groups)
    length = math.ceil(samples * target / source)
    return phases.transpose(1, 2).reshape(batch, channels, -1)[..., :length]


def _directly(x: Float[Tensor, "rows samples"], source: int, target: int) -> Float[Tensor, "rows resampled"]:
    """Evaluate the filter for every output sample, for rates whose phases are too many to be stored."""
    base = _ROLLOFF * min(source, target)
    reach = math.ceil(_ZERO_CROSSINGS * source / base)
    length = math.ceil(x.shape[-1] * target / source)
    taps = torch.arange(-reach, reach + 1, device=x.device)
    padded = F.pad(x, (reach, reach + 1))
    pieces = []
    for start in range(0, length, _CHUNK):
        place = torch.arange(start, min(start + _CHUNK, length), device=x.device) * source
        whole, rest = place // target, (place % target).double() / target  # exact: integers
        times = ((taps - rest[:, None]) * (base / source)).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        window = torch.cos(times * math.pi / _ZERO_CROSSINGS / 2) ** 2
        weights = (torch.sinc(times) * window * base / source).to(x.dtype)
        pieces.append((padded[:, whole[:, None] + taps + reach] * weights).sum(-1))
    return torch.cat(pieces, dim=-1)
