"""Keep sound below full scale without touching what is not loud."""

import torch

from soundstage.core.types import Waveform

KNEE, PEAK = 0.7, 0.9  # above the knee the waveform bends towards the peak and never passes it


def limit(waveform: Waveform) -> Waveform:
    """Bend what is above the knee, leave the rest untouched."""
    over = waveform.abs().sub_(KNEE)
    if not bool((over > 0).any()):
        return waveform
    bent = KNEE + (PEAK - KNEE) * torch.tanh(over / (PEAK - KNEE))
    return torch.where(over > 0, bent * waveform.sign(), waveform)
