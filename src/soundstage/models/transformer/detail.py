"""A wide, shallow end of a narrow network: what is too fine for the stream's width, token by token.

Ours; no released checkpoint has one. See docs/decisions/0011-a-wide-end-for-a-narrow-network.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.types import Tokens
from soundstage.nn.linear import project


class DetailHead(nn.Module):
    """A gated feed-forward layer that reads a token's state beside the noisy token itself.

    The state tells what the token shows; the noisy token, in its full width, where exactly. A new head says
    nothing: its last layer starts at zero.

    Args:
        width: Of the stream.
        num_features: Of a token.
        inner: Width between the layers.

    Source: Zheng et al. 2025, "Diffusion transformers with representation autoencoders", arXiv 2510.11690 (a
    width below the token's number of features cannot fit even one clip; a wide, shallow head mends it).
    """

    def __init__(self, width: int, num_features: int, inner: int) -> None:
        super().__init__()
        self.read_state = nn.Linear(width, 2 * inner)
        self.read_token = nn.Linear(num_features, 2 * inner, bias=False)
        self.write = nn.Linear(inner, num_features, bias=False)
        nn.init.zeros_(self.write.weight)

    def forward(self, state: Float[Tensor, "b n width"], latents: Float[Tensor, "#b n features"]) -> Tokens:
        """Say what is to be added to the projected token.

        Args:
            state: Normed and modulated, as the output projection reads it.
            latents: Noisy tokens, or those of one item that all rows stand for.
        """
        read = project(self.read_state, state) + project(self.read_token, latents.to(state.dtype))
        value, gate = torch.chunk(read, 2, dim=-1)
        return project(self.write, value * F.silu(gate))
