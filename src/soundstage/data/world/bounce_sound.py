"""Sound of scenes: damped modes and a burst of noise for each impact, placed exactly at its time.

Source: modal synthesis of contact sounds, van den Doel & Pai 1998, "The sounds of physical shapes".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.rng import generator
from soundstage.core.types import Waveform
from soundstage.data.world.bounce import Bounce
from soundstage.data.world.damped_sines import BLOCK, SILENT_MODE, Mode, add_panned, ring
from soundstage.data.world.limiter import limit


@dataclass(frozen=True, kw_only=True)
class Timbre:
    """How a material answers a blow."""

    modes: tuple[Mode, ...]
    noise_band: tuple[float, float]  # Hz
    noise_level: float  # root mean square at the start, for a full blow
    noise_decay: float  # s
    glide: float = 0.0  # how far above its pitch each mode begins, as a fraction


TIMBRES: dict[str, Timbre] = {
    "wood": Timbre(
        modes=(
            Mode(460.0, 0.50, 0.040),
            Mode(1180.0, 0.30, 0.024),
            Mode(1930.0, 0.14, 0.014),
            Mode(2790.0, 0.06, 0.010),
        ),
        noise_band=(400.0, 2600.0),
        noise_level=0.20,
        noise_decay=0.006,
    ),
    "metal": Timbre(
        modes=(
            Mode(760.0, 0.20, 0.24),
            Mode(1217.0, 0.22, 0.28),
            Mode(1702.0, 0.20, 0.24),
            Mode(2257.0, 0.16, 0.20),
            Mode(3010.0, 0.13, 0.15),
            Mode(3870.0, 0.09, 0.11),
        ),
        noise_band=(2000.0, 7000.0),
        noise_level=0.16,
        noise_decay=0.005,
    ),
    "glass": Timbre(
        modes=(
            Mode(2050.0, 0.42, 0.095),
            Mode(3110.0, 0.28, 0.075),
            Mode(4190.0, 0.20, 0.055),
            Mode(5160.0, 0.10, 0.040),
        ),
        noise_band=(3500.0, 7800.0),
        noise_level=0.12,
        noise_decay=0.003,
    ),
    "drum": Timbre(
        modes=(
            Mode(140.0, 0.58, 0.16),
            Mode(223.0, 0.24, 0.10),
            Mode(300.0, 0.12, 0.07),
            Mode(371.0, 0.06, 0.05),
        ),
        noise_band=(80.0, 900.0),
        noise_level=0.14,
        noise_decay=0.018,
        glide=0.35,
    ),
    "clack": Timbre(  # two hard things meet
        modes=(
            Mode(1480.0, 0.46, 0.018),
            Mode(2630.0, 0.32, 0.012),
            Mode(3890.0, 0.22, 0.008),
        ),
        noise_band=(1500.0, 6000.0),
        noise_level=0.22,
        noise_decay=0.004,
    ),
    "thud": Timbre(  # a wall is hit
        modes=(
            Mode(205.0, 0.50, 0.055),
            Mode(341.0, 0.30, 0.040),
            Mode(530.0, 0.20, 0.025),
        ),
        noise_band=(120.0, 1500.0),
        noise_level=0.20,
        noise_decay=0.010,
    ),
}
SIZE_PITCH: dict[str, float] = {"small": 1.42, "medium": 1.0, "large": 0.70}
"""Factor on every mode: the smaller the object, the higher the sound."""

FULL_SPEED = 2.4  # heights/s that sound at full level
FULL_LEVEL = 0.62  # peak amplitude of a blow in the middle of the picture, before panning

GRAIN_SECONDS = 1.3  # by then the longest mode is 40 dB down
BURST_SECONDS = 0.12
GLIDE_TIME = 0.025  # s
NOISE_SECONDS = 8


class Blow(NamedTuple):
    """One sound to make."""

    row: int  # of the batch
    time: float  # s
    pan: float  # 0 = left, 1 = right
    strength: float  # heights/s; `FULL_SPEED` is full level
    material: str  # key of `TIMBRES`
    pitch: float  # factor on every mode
    noise: int  # where in the bank of noise its contact begins


def sound_bounces(
    scenes: Sequence[Bounce],
    *,
    duration: float,
    sample_rate: int,
    device: torch.device | str = "cpu",
) -> Waveform:
    """Make the stereo sound of the first `duration` seconds of each scene.

    A duration past the end of the clip is welcome: what happens there sounds too, so that a window cut from
    the result has no silence that the world would not have.
    """
    blows = [
        Blow(
            row=row,
            time=event.time,
            pan=scene.pan(event.x),
            strength=event.strength,
            material=event.sound,
            pitch=SIZE_PITCH[scene.size] * scene.detune,
            noise=scene.noise,
        )
        for row, scene in enumerate(scenes)
        for event in scene.events_before(duration)
    ]
    return sound_blows(blows, num_rows=len(scenes), duration=duration, sample_rate=sample_rate, device=device)


def sound_blows(
    blows: Sequence[Blow],
    *,
    num_rows: int,
    duration: float,
    sample_rate: int,
    device: torch.device | str = "cpu",
) -> Waveform:
    """Sum blows into a batch of `num_rows` stereo waveforms, each from the sample of its time on."""
    device = torch.device(device)
    num_samples = round(duration * sample_rate)
    waveform = torch.zeros(num_rows, 2, num_samples, device=device)
    if blows:
        for grain, blow in zip(_grains(blows, sample_rate, device), blows, strict=True):
            start = min(round(blow.time * sample_rate), num_samples - 1)
            add_panned(waveform, blow.row, start, grain, blow.pan)
    return limit(waveform)


def _grains(blows: Sequence[Blow], sample_rate: int, device: torch.device) -> Float[Tensor, "n samples"]:
    """Sound of each impact from its first sample on, in mono."""
    grains = _modes(blows, sample_rate, device)
    bursts = _bursts(blows, sample_rate, device)
    grains[:, : bursts.shape[1]].add_(bursts)
    fade = round(0.1 * sample_rate)
    grains[:, -fade:].mul_(torch.linspace(1, 0, fade, device=device))
    loudness = [FULL_LEVEL * min(blow.strength / FULL_SPEED, 1.1) for blow in blows]
    return grains.mul_(torch.tensor(loudness, dtype=torch.float32, device=device)[:, None])


def _modes(blows: Sequence[Blow], sample_rate: int, device: torch.device) -> Float[Tensor, "n samples"]:
    """Ring each object's material, at the pitch of its size."""
    num_modes = max(len(timbre.modes) for timbre in TIMBRES.values())
    rows = []
    for blow in blows:
        modes = TIMBRES[blow.material].modes
        heard = [
            mode._replace(frequency=mode.frequency * blow.pitch).per_sample(sample_rate) for mode in modes
        ]
        rows.append(heard + [SILENT_MODE] * (num_modes - len(modes)))
    table = torch.tensor(rows, dtype=torch.float64)
    grains = ring(table, math.ceil(GRAIN_SECONDS * sample_rate / BLOCK), device)
    for row, blow in enumerate(blows):
        if glide := TIMBRES[blow.material].glide:
            grains[row] = _bend(grains[row], glide, sample_rate)
    return grains


def _bend(grain: Float[Tensor, " samples"], glide: float, sample_rate: int) -> Float[Tensor, " samples"]:
    """Play a sound `1 + glide` times too fast at first, then at its own speed: the pitch falls.

    Linear interpolation suffices for the low sounds that need it.
    """
    length = GLIDE_TIME * sample_rate
    index = torch.arange(len(grain), device=grain.device, dtype=torch.float32)
    place = index + glide * length * -torch.expm1(-index / length)
    whole = place.long().clamp_(max=len(grain) - 2)
    return torch.lerp(grain[whole], grain[whole + 1], (place - whole).clamp_(max=1))


def _bursts(blows: Sequence[Blow], sample_rate: int, device: torch.device) -> Float[Tensor, "n burst"]:
    """Decaying noise of each contact; which piece of noise depends on the impact, so no two are the same."""
    length = round(BURST_SECONDS * sample_rate)
    time = torch.arange(length, device=device, dtype=torch.float32) / sample_rate
    rows = []
    for blow in blows:
        timbre = TIMBRES[blow.material]
        bank = noise_of_band(timbre.noise_band, sample_rate, device)
        start = (blow.noise + round(blow.time * sample_rate)) % (len(bank) - length)
        rows.append(bank[start : start + length] * timbre.noise_level)
    decay = torch.tensor([TIMBRES[blow.material].noise_decay for blow in blows], device=device)
    return torch.stack(rows).mul_(torch.exp(-time / decay[:, None]))


@lru_cache(maxsize=32)
def noise_of_band(
    band: tuple[float, float], sample_rate: int, device: torch.device
) -> Float[Tensor, " samples"]:
    """Looping noise of one band with root mean square 1, the same on every device."""
    low, high = band
    count = NOISE_SECONDS * sample_rate
    white = torch.randn(count, generator=generator(0, f"world.noise.{low}-{high}"))
    spectrum = torch.fft.rfft(white)
    frequency = torch.fft.rfftfreq(count, 1 / sample_rate)
    gain = torch.sigmoid((frequency - low) / (0.15 * low)) * torch.sigmoid((high - frequency) / (0.08 * high))
    noise: Tensor = torch.fft.irfft(spectrum * gain, count)
    level = noise.square().mean().sqrt()
    return noise.div_(level).to(device)
