"""The two-layer network that follows attention in every block."""

from jaxtyping import Float
from torch import Tensor, nn

from soundstage.nn.linear import project


class GELUProjection(nn.Module):
    """Linear, then the tanh approximation of GELU."""

    def __init__(self, dim: int, hidden: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden, bias=bias)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... hidden"]:
        """Project and activate."""
        return project(self.proj, x, "gelu_tanh")


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
        return self.narrow(self.widen(x))

    def widen(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... hidden"]:
        """Do the first half, after which the tokens themselves are no longer needed."""
        wide: Tensor = self.net[0](x)
        return wide

    def narrow(self, wide: Float[Tensor, "... hidden"]) -> Float[Tensor, "... d"]:
        """Do the second half."""
        return project(self.net[2], wide)
