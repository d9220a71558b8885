"""Any number of audio channels to the two that the networks know."""

from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import Waveform

_SIDE = 0.707  # gain of centre and surround channels, about -3 dB

# Source channels of the left and the right output, with gains; the order is that of WAV and FFmpeg.
DOWNMIX: dict[int, tuple[dict[int, float], dict[int, float]]] = {
    1: ({0: 1.0}, {0: 1.0}),
    # 5.1: L R C LFE Ls Rs; the low-frequency effects are left out
    6: ({0: 1.0, 2: _SIDE, 4: _SIDE}, {1: 1.0, 2: _SIDE, 5: _SIDE}),
    # 7.1: L R C LFE Lb Rb Ls Rs
    8: ({0: 1.0, 2: _SIDE, 4: _SIDE, 6: _SIDE}, {1: 1.0, 2: _SIDE, 5: _SIDE, 7: _SIDE}),
}


def to_stereo(waveform: Waveform) -> Float[Tensor, "b 2 samples"]:
    """Mix any channel layout down to left and right, without a gain above 1.

    Mono is doubled; 5.1 and 7.1 are mixed with their usual gains; any other count becomes the mean, doubled.

    Raises:
        RequestError: There is no channel.
    """
    channels = waveform.shape[1]
    if channels == 0:
        raise RequestError("the waveform has no channels; at least one is needed")
    if channels == 2:
        return waveform
    if channels not in DOWNMIX:
        return waveform.mean(1, keepdim=True).repeat(1, 2, 1)
    mix = waveform.new_zeros(2, channels)
    for side, gains in enumerate(DOWNMIX[channels]):
        for channel, gain in gains.items():
            mix[side, channel] = gain / sum(gains.values())
    return mix @ waveform
