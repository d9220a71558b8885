"""Root-mean-square norms, with and without a learned weight."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def rms_norm(
    x: Float[Tensor, "... d"], eps: float, weight: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "... d"]:
    """Scale every vector to unit root mean square; the statistic is float32 whatever the dtype of `x`.

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
    """
    return F.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), eps)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight per feature."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise over the last axis."""
        return rms_norm(x, self.eps, self.weight)
