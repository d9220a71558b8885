"""HDR pictures for a display of ordinary range: PQ and HLG in BT.2020 to sRGB.

The picture's light is computed, brought to BT.709 primaries, and what is brighter than a white page is rolled
off; a white page (203 cd/m²) becomes almost white. Hue is kept: all three channels are scaled alike.

Source: transfer functions, SMPTE ST 2084 and ITU-R BT.2100-2 tables 4 and 5; reference white, ITU-R BT.2408
section 2; primaries, ITU-R BT.2087 section 4. The roll-off is ours.
"""

from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Transfer = Literal["sdr", "pq", "hlg"]

_WHITE = 203.0  # cd/m², of a white page in HDR
_HLG_PEAK = 1000.0  # cd/m², of the display that HLG is mastered for; its system gamma is 1.2
_KNEE = 0.75  # of white; darker light is left as it is
_BT2020_TO_BT709 = (
    (1.660491, -0.587641, -0.072850),
    (-0.124550, 1.132900, -0.008349),
    (-0.018151, -0.100579, 1.118730),
)
_BT2020_LUMA = (0.2627, 0.6780, 0.0593)


def to_sdr(codes: Float[Tensor, "h w 3"], transfer: Transfer) -> UInt8[Tensor, "h w 3"]:
    """Bring a non-linear BT.2020 picture in [0, 1] to 8-bit sRGB.

    Args:
        transfer: "pq" or "hlg".
    """
    light = _pq_light(codes) if transfer == "pq" else _hlg_light(codes)  # 1 = a white page
    light = light @ torch.tensor(_BT2020_TO_BT709).T
    brightest = light.amax(-1, keepdim=True).clamp(min=1e-6)
    light = light * (_roll_off(brightest) / brightest)
    return (_srgb(light.clamp(0, 1)) * 255).round_().to(torch.uint8)


def _pq_light(codes: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w 3"]:
    """Invert the perceptual quantiser (ST 2084 section 5)."""
    m1, m2 = 2610 / 16384, 2523 / 32
    c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
    root = codes.clamp(0, 1) ** (1 / m2)
    return ((root - c1).clamp(min=0) / (c2 - c3 * root)) ** (1 / m1) * (10_000 / _WHITE)


def _hlg_light(codes: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w 3"]:
    """Invert hybrid log-gamma and apply the system gamma of a display of 1,000 cd/m² (BT.2100 table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    low, high = codes.clamp(min=0) ** 2 / 3, (torch.exp((codes - c) / a) + b) / 12
    scene = torch.where(codes <= 0.5, low, high)
    luma = (scene @ torch.tensor(_BT2020_LUMA)).clamp(min=1e-6)[..., None]
    return luma**0.2 * scene * (_HLG_PEAK / _WHITE)


def _roll_off(light: Float[Tensor, "h w 1"]) -> Float[Tensor, "h w 1"]:
    """Leave light below the knee alone and bend all above it towards 1, with no corner."""
    room = 1 - _KNEE
    above = (light - _KNEE).clamp(min=0)
    return torch.where(light > _KNEE, _KNEE + room * above / (above + room), light)


def _srgb(light: Float[Tensor, "h w 3"]) -> Float[Tensor, "h w 3"]:
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=1e-9) ** (1 / 2.4) - 0.055)
