"""Sound of rain, wind, sea and crowd: bands of noise whose loudness follows the intensity exactly."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import Waveform
from soundstage.data.world.ambience import Ambience
from soundstage.data.world.bounce_sound import noise_of_band
from soundstage.data.world.limiter import limit

BANDS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "rain": ((1800.0, 7000.0, 0.100, 1.0),),
    "wind": ((140.0, 420.0, 0.110, 1.0), (420.0, 900.0, 0.090, 2.0)),
    "sea": ((120.0, 900.0, 0.120, 1.0), (900.0, 4000.0, 0.050, 2.0)),
    "crowd": ((280.0, 1100.0, 0.120, 1.0), (1100.0, 2600.0, 0.040, 2.0)),
}
"""Element to bands: from and to in Hz, root mean square at intensity 1, power of the intensity it follows."""
BABBLE = ((3.1, 0.30), (4.7, 0.35))
"""Of a crowd: rates in Hz and depths of the swell of voices."""
LAYER_GAIN = 0.30  # -10 dB: impacts of other scenes stay clear above it


def sound_ambience(
    ambiences: Sequence[Ambience],
    *,
    duration: float,
    sample_rate: int,
    device: torch.device | str = "cpu",
) -> Waveform:
    """Make the sound of each ambience, the same loudness in both ears but not the same noise."""
    device = torch.device(device)
    num_samples = round(duration * sample_rate)
    waveform = torch.zeros(len(ambiences), 2, num_samples, device=device)
    for row, ambience in enumerate(ambiences):
        intensity = _intensity(ambience, num_samples, sample_rate, device)
        for low, high, level, power in BANDS[ambience.element]:
            gain = intensity.pow(power) * (level * (LAYER_GAIN if ambience.is_layer else 1))
            bank = noise_of_band((low, high), sample_rate, device)
            for ear in range(2):
                heard = ear if not ambience.flipped else 1 - ear
                waveform[row, ear].add_(_excerpt(bank, ambience.seed + heard, num_samples) * gain)
    return limit(waveform)


def _intensity(
    ambience: Ambience, num_samples: int, sample_rate: int, device: torch.device
) -> Float[Tensor, " samples"]:
    time = torch.arange(num_samples, device=device, dtype=torch.float32) / sample_rate
    swell = torch.sin(2 * math.pi * (time / ambience.period + ambience.phase))
    intensity = (swell * ambience.depth + 1) * ambience.mean
    if ambience.element == "crowd":
        start = ambience.seed % 1000 / 1000
        for rate, depth in BABBLE:
            intensity = intensity * (1 + depth * torch.sin(2 * math.pi * (rate * time + start)))
    return intensity


def _excerpt(bank: Float[Tensor, " bank"], seed: int, count: int) -> Float[Tensor, " samples"]:
    """Part of a looping bank of noise, from a place that depends on the seed."""
    start = seed * 7919 % len(bank)
    looped = bank.repeat(1 + math.ceil(count / len(bank)))
    return looped[start : start + count]
