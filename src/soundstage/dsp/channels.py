"""Any number of audio channels to the two that the networks know."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import Waveform

_SIDE = 0.707  # gain of centre and surround channels, about -3 dB

# What each named channel gives to the left and the right output; FFmpeg's names. The low-frequency effects
# are left out. Source: ITU-R BS.775-4, table 2.
GAINS: dict[str, tuple[float, float]] = {
    "FL": (1, 0), "FR": (0, 1), "FC": (_SIDE, _SIDE), "LFE": (0, 0), "LFE2": (0, 0),
    "BL": (_SIDE, 0), "BR": (0, _SIDE), "SL": (_SIDE, 0), "SR": (0, _SIDE), "BC": (0.5, 0.5),
    "FLC": (1, 0), "FRC": (0, 1), "WL": (_SIDE, 0), "WR": (0, _SIDE), "DL": (1, 0), "DR": (0, 1),
    "TFL": (_SIDE, 0), "TFR": (0, _SIDE), "TBL": (_SIDE, 0), "TBR": (0, _SIDE), "TSL": (_SIDE, 0),
    "TSR": (0, _SIDE), "TFC": (0.5, 0.5), "TBC": (0.5, 0.5), "TC": (0.5, 0.5),
}  # fmt: skip

# The usual order of so many channels, that of WAV and FFmpeg: 5.1 and 7.1.
USUAL = {
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}


def to_stereo(waveform: Waveform, names: Sequence[str] | None = None) -> Float[Tensor, "b 2 samples"]:
    """Mix any channel layout down to left and right, without a gain above 1.

    Mono is doubled; named channels, and 5.1 and 7.1 in their usual order, are mixed with their usual gains;
    any other count becomes the mean, doubled.

    Args:
        names: Of the channels: FL, FR, FC, LFE, BL, BR, SL, SR ...

    Raises:
        RequestError: There is no channel.
    """
    channels = waveform.shape[1]
    if channels == 0:
        raise RequestError("the waveform has no channels; at least one is needed")
    if channels == 2:
        return waveform
    names = names or USUAL.get(channels, ())
    if channels == 1 or len(names) != channels or not set(names) <= set(GAINS):
        return waveform.mean(1, keepdim=True).repeat(1, 2, 1)
    mix = waveform.new_tensor([GAINS[name] for name in names]).T
    return mix / mix.sum(1, keepdim=True).clamp(min=1) @ waveform
