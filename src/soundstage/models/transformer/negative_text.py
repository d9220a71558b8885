"""Normalised attention guidance: away from a second text inside text attention, without a second pass.

    heard = attention to the prompt, away = attention to the negative text, the same queries
    far   = heard + (scale - 1) (heard - away)
    near  = far, shortened where its L1 norm exceeds tau times that of heard, token by token
    out   = alpha near + (1 - alpha) heard

Classifier-free guidance compares two whole predictions, which distilled networks are not made for; here the
result stays within reach of what the layer is used to. It costs one more text attention per block.

Source: Chen et al. 2025, arXiv 2505.21179, with scale = 1 + phi.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

TextFeatures = Float[Tensor, "b s d"]


@dataclass(frozen=True, kw_only=True)
class NegativeText:
    """A text to steer away from, and how."""

    context: TextFeatures
    scale: float  # 1 = off
    tau: float  # longest result, as a multiple of what was heard
    alpha: float  # share of the steered result, [0, 1]

    def steer(self, heard: Float[Tensor, "b n d"], away: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Move what tokens hear of the prompt away from what they would hear of the negative text."""
        wanted, unwanted = heard.float(), away.float()
        far = wanted + (self.scale - 1) * (wanted - unwanted)
        length = wanted.abs().sum(-1, keepdim=True)
        ratio = far.abs().sum(-1, keepdim=True) / length.clamp(min=torch.finfo(torch.float32).tiny)
        near = far * (self.tau / ratio.clamp(min=self.tau))
        return torch.lerp(wanted, near, self.alpha).to(heard.dtype)
