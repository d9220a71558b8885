"""Hear how loud a voice is over time, and whether the mouth in the picture moves with it."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.dsp.stft import hann_window
from soundstage.evaluation.detectors.mouth import find_mouth
from soundstage.evaluation.observation import SAMPLE_RATE, Observation

HOP = 80  # samples, 5 ms
WINDOW = 320  # samples, 20 ms
VOICED = (250.0, 3600.0)  # Hz; vowels lie within, hiss and rumble without
POINTS = 200  # per second, at which picture and sound are compared
FARTHEST = 0.35  # s
SMOOTH = 0.020  # s, standard deviation of what both are smoothed with
FAINT = 1e-3  # amplitude below which nothing is a voice
PITCH_WINDOW = 640  # samples, 40 ms
PITCHES = (80.0, 320.0)  # Hz, of any voice
BETWEEN_VOICES = 165.0  # Hz, the geometric middle of the world's low and high voices
VOICE_BEHIND = -0.003  # s by which the world's own voices follow its mouths, measured


@dataclass(frozen=True, kw_only=True)
class LipSync:
    """How the voice follows the mouth."""

    lag: float  # s by which the voice is late; negative where it is early
    correlation: float  # of opening and loudness at that lag
    correlation_in_place: float  # of the same without a shift


Curve = Float[Tensor, " n"]


def find_loudness(seen: Observation) -> Curve:
    """Amplitude of the voice every 5 ms from time 0; both channels together."""
    return voice_loudness(seen.waveform)


def voice_loudness(waveform: Float[Tensor, "2 samples"]) -> Curve:
    """Amplitude of a sound at `SAMPLE_RATE` between the frequencies of a voice, every 5 ms."""
    window = hann_window(WINDOW).float()
    padded = F.pad(waveform, (WINDOW // 2, WINDOW // 2))
    spectrum = torch.stft(padded, WINDOW, HOP, WINDOW, window, center=False, return_complex=True)
    low, high = (round(edge / SAMPLE_RATE * WINDOW) for edge in VOICED)
    power = spectrum[:, low : high + 1].abs().square().sum((0, 1))
    return power.mul(2 / (WINDOW * float(window.square().sum()))).sqrt()


def find_lip_sync(seen: Observation) -> LipSync | None:
    """Compare mouth and voice; None where there is no moving mouth or no voice."""
    mouth, loudness = seen.find(find_mouth), seen.find(find_loudness)
    if mouth is None or float(loudness.max()) < FAINT or len(mouth.openings) < 3:
        return None
    count = math.ceil(seen.duration * POINTS)
    times = torch.arange(count) / POINTS
    opening = _smooth(_read(seen.times.float(), torch.tensor(mouth.openings), times))
    voice = _smooth(_read(torch.arange(len(loudness)) * (HOP / SAMPLE_RATE), loudness, times))
    shifts = range(-round(FARTHEST * POINTS), round(FARTHEST * POINTS) + 1)
    curve = torch.tensor([_correlation(opening, voice, shift) for shift in shifts])
    best = int(curve.argmax())
    offset = 0.0
    if 0 < best < len(curve) - 1:
        left, middle, right = (float(curve[best + step]) for step in (-1, 0, 1))
        bend = left - 2 * middle + right
        offset = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return LipSync(
        lag=(shifts[best] + offset) / POINTS - VOICE_BEHIND,
        correlation=float(curve[best]),
        correlation_in_place=float(curve[len(curve) // 2]),
    )


def find_pitch(seen: Observation) -> float | None:
    """Median pitch of what is voiced, in hertz; None where nothing is.

    Source: the normalised autocorrelation of Boersma 1993, each lag weighed by what the window lets of it.
    """
    mono = seen.waveform.sum(0)
    if len(mono) < PITCH_WINDOW or float(mono.abs().max()) < FAINT:
        return None
    shape = hann_window(PITCH_WINDOW).float()
    pieces = mono.unfold(0, PITCH_WINDOW, PITCH_WINDOW // 4) * shape
    curves = _autocorrelation(pieces) / _autocorrelation(shape[None]).clamp_min(1e-6)
    first, last = (round(SAMPLE_RATE / pitch) for pitch in reversed(PITCHES))
    heights = curves[:, first : last + 1] / curves[:, :1].clamp_min(1e-12)
    heights = heights * torch.linspace(1.0, 0.9, heights.shape[1])  # an octave too low fits as well
    best = heights.max(1)
    level = pieces.square().mean(1).sqrt()
    voiced = (best.values > 0.6) & (level > 0.2 * level.max())
    if not bool(voiced.any()):
        return None
    return SAMPLE_RATE / (first + float(best.indices[voiced].float().median()))


def find_voice(seen: Observation) -> str | None:
    """Say whether a voice is low or high; None where nothing is voiced."""
    pitch = seen.find(find_pitch)
    return None if pitch is None else "high" if pitch > BETWEEN_VOICES else "low"


def _autocorrelation(pieces: Float[Tensor, "n window"]) -> Float[Tensor, "n lags"]:
    size = 2 * pieces.shape[1]
    power = torch.fft.rfft(pieces, size).abs().square()
    lags: Tensor = torch.fft.irfft(power, size)
    return lags[:, : pieces.shape[1]]


def _read(times: Curve, values: Curve, wanted: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
    """Interpolate linearly; constant beyond the ends."""
    after = torch.searchsorted(times.contiguous(), wanted.contiguous()).clamp_(1, len(times) - 1)
    part = (wanted - times[after - 1]) / (times[after] - times[after - 1])
    return torch.lerp(values[after - 1], values[after], part.clamp(0, 1))


def _smooth(curve: Curve) -> Curve:
    """Smooth with a Gaussian, the ends repeated."""
    reach = math.ceil(3 * SMOOTH * POINTS)
    offsets = torch.arange(-reach, reach + 1) / (SMOOTH * POINTS)
    weight = torch.exp(-offsets.square() / 2)
    padded = F.pad(curve[None, None], (reach, reach), mode="replicate")
    return F.conv1d(padded, (weight / weight.sum())[None, None])[0, 0]


def _correlation(opening: Curve, voice: Curve, shift: int) -> float:
    """Pearson's correlation of a mouth and the voice `shift` points later."""
    first, second = opening[max(-shift, 0) : len(opening) - max(shift, 0)], voice[max(shift, 0) :]
    second = second[: len(first)]
    first, second = first - first.mean(), second - second.mean()
    scale = float(first.square().sum() * second.square().sum())
    return float((first * second).sum()) / math.sqrt(scale) if scale > 1e-16 else 0.0
