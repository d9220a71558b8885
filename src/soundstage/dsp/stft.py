"""The short-time Fourier transform: how strong each frequency is at each moment."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import Waveform

Magnitudes = Float[Tensor, "b ch bins t"]  # bins = n_fft / 2 + 1


@functools.cache
def hann_window(length: int) -> Float[Tensor, " length"]:
    """Make the periodic Hann window as a CPU tensor; cached, so do not change it in place."""
    with torch.inference_mode(False):  # a cached inference tensor could never be used in training
        return torch.hann_window(length, periodic=True, dtype=torch.float64, device="cpu")


def magnitude(waveform: Waveform, *, n_fft: int, hop_length: int, win_length: int) -> Magnitudes:
    """Measure the magnitude spectrum of frames centred on multiples of the hop.

    The ends are mirrored, so `samples` samples give `1 + samples // hop_length` frames. Differentiable
    everywhere: the gradient at silence is zero.

    Raises:
        RequestError: The waveform is too short to mirror half a window.
    """
    samples = waveform.shape[-1]
    if samples <= n_fft // 2:
        raise RequestError(f"the waveform has {samples} samples; at least {n_fft // 2 + 1} are needed")
    x = waveform.to(torch.promote_types(waveform.dtype, torch.float32))
    x = F.pad(x, (n_fft // 2, n_fft // 2), mode="reflect")
    spectrum = torch.stft(
        x.flatten(0, 1),
        n_fft,
        hop_length,
        win_length,
        hann_window(win_length).to(x),
        center=False,
        return_complex=True,
    )
    return spectrum.abs().reshape(*waveform.shape[:2], *spectrum.shape[1:])
