"""Numbers to colours: one dark-to-bright scale whose lightness rises evenly, also seen in black and white."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

# Lightness 5, 25, 45, 65, 85, 97 (CIELAB) from near-black through violet, red and orange to pale yellow.
_ANCHORS = ((12, 8, 32), (82, 20, 110), (168, 44, 92), (228, 104, 44), (250, 188, 66), (253, 248, 190))


def colours(values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape 3"]:
    """Colour values of [0, 1], RGB; what lies outside is clipped."""
    anchors = torch.tensor(_ANCHORS, dtype=torch.float32, device=values.device)
    place = values.float().clamp(0, 1) * (len(_ANCHORS) - 1)
    low = place.floor().long().clamp(max=len(_ANCHORS) - 2)
    mixed = torch.lerp(anchors[low], anchors[low + 1], (place - low).unsqueeze(-1))
    return mixed.round().to(torch.uint8)
