"""How much moves and how much begins to sound at each moment, for any clip, and how the two go together."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.dsp.stft import hann_window
from soundstage.evaluation.observation import Observation

GRID = 0.01  # s between the moments of a curve
SMOOTH = 0.05  # s, deviation of the bell with which both curves are smoothed: about a frame
LAGS = tuple(step * 2 for step in range(-15, 16))  # of the sound behind the picture, in steps of the grid
WINDOW, HOP = 512, 160  # samples: 32 ms and GRID
DEPTH = 50.0  # dB below the loudest moment that still count

Curve = Float[Tensor, " moments"]


def picture_activity(seen: Observation) -> Curve:
    """Mean change of all pixels from frame to frame, on the grid; a change lies between its frames."""
    count = max(round(seen.duration / GRID), 2)
    if len(seen.pictures) < 3:
        return torch.zeros(count)
    change = seen.pictures.diff(dim=0).abs().mean((1, 2, 3))
    between = ((seen.times[1:] + seen.times[:-1]) / 2).float()
    moments = torch.arange(count) * GRID
    place = torch.searchsorted(between, moments).clamp(1, len(between) - 1)
    before, after = between[place - 1], between[place]
    part = ((moments - before) / (after - before)).clamp(0, 1)
    return _smooth(torch.lerp(change[place - 1], change[place], part))


def sound_activity(seen: Observation) -> Curve:
    """Mean rise of the spectrum in decibels, on the grid: the beginnings of sounds."""
    count = max(round(seen.duration / GRID), 2)
    waveform = seen.waveform
    if waveform.shape[1] <= WINDOW or float(waveform.abs().max()) < 1e-4:
        return torch.zeros(count)
    padded = F.pad(waveform, (WINDOW // 2, WINDOW // 2), mode="reflect")
    shape = hann_window(WINDOW).float()
    power = torch.stft(padded, WINDOW, HOP, WINDOW, shape, center=False, return_complex=True)
    power = power.abs().square().sum(0)
    levels = 10 * torch.log10(power + float(power.mean(0).max()) * 10 ** (-DEPTH / 10))
    rise = F.pad((levels[:, 2:] - levels[:, :-2]).clamp_min(0).mean(0), (1, 1))
    return _smooth(F.pad(rise, (0, max(count - len(rise), 0)))[:count])


def activity_correlation(seen: Observation) -> Float[Tensor, " lags"] | None:
    """Correlate both curves, the sound shifted back by each of `LAGS`; None where one of them is flat."""
    picture, sound = seen.find(picture_activity), seen.find(sound_activity)
    widest = max(LAGS)
    if len(picture) < 3 * widest or min(float(picture.std()), float(sound.std())) < 1e-6:
        return None
    middle = picture[widest:-widest]
    rows = torch.stack([sound[widest + lag : widest + lag + len(middle)] for lag in LAGS])
    middle, rows = middle - middle.mean(), rows - rows.mean(1, keepdim=True)
    size = middle.norm() * rows.norm(dim=1)
    return torch.where(size > 1e-6, rows @ middle / size.clamp_min(1e-6), 0.0)


def _smooth(curve: Curve) -> Curve:
    reach = round(3 * SMOOTH / GRID)
    bell = torch.exp(-(((torch.arange(-reach, reach + 1) * GRID) / SMOOTH) ** 2) / 2)
    padded = F.pad(curve[None, None], (reach, reach), mode="replicate") if len(curve) > reach else None
    if padded is None:
        return curve
    return F.conv1d(padded, (bell / bell.sum())[None, None])[0, 0]
