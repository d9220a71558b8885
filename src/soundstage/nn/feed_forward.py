"""The two-layer network that follows attention in every block."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class GELUProjection(nn.Module):
    """Linear, then the tanh approximation of GELU."""

    def __init__(self, dim: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden, bias=bias)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... hidden"]:
        """Project and activate."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Widen, activate, narrow."""

    def __init__(self, dim: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        # The empty member holds the place of a dropout, so that names match the official files.
        self.net = nn.Sequential(
            GELUProjection(dim, hidden, bias=bias), nn.Identity(), nn.Linear(hidden, dim, bias=bias)
        )

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Transform every token by itself."""
        out: Tensor = self.net(x)
        return out
