"""Tensor aliases: shape, range and unit in one name.

Legend: `b` batch, `c` channels, `f h w` latent frames, height and width, `frames height width` the same in
pixels, `t` audio frames, `m` mel bins, `n` tokens, `s` text tokens, `d` width, `heads`, `ch` audio channels.
A letter that occurs twice in one signature must agree; the tests check it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

VideoPixels = Float[Tensor, "b 3 frames height width"]  # RGB in [-1, 1]
VideoLatents = Float[Tensor, "b c f h w"]  # normalised VAE latents
AudioLatents = Float[Tensor, "b c t m"]  # normalised VAE latents
Waveform = Float[Tensor, "b ch samples"]  # [-1, 1]
LogMel = Float[Tensor, "b ch t m"]  # natural log of mel magnitude
Tokens = Float[Tensor, "b n d"]
Positions = Float[Tensor, "b axes n 2"]  # [start, end) per axis: seconds for time, pixels for space
TokenMask = Float[Tensor, "b n 1"]  # 1 = generate, 0 = keep
Timesteps = Float[Tensor, "b n"]  # per-token noise level in [0, 1]
BatchSigma = Float[Tensor, " b"]  # per-sample noise level in [0, 1]
Sigmas = Float[Tensor, " steps"]  # descending noise levels, 1 -> 0
Context = Float[Tensor, "b s d"]  # text features
ContextMask = Bool[Tensor, "b s"] | Int[Tensor, "b s"]

T = TypeVar("T", covariant=True)
U = TypeVar("U")


@dataclass(frozen=True)
class AV(Generic[T]):
    """A pair of one thing per stream; None where a stream is absent."""

    video: T | None = None
    audio: T | None = None

    def map(self, fn: Callable[[T], U]) -> "AV[U]":
        """Apply `fn` to each stream that is present."""
        return AV(
            None if self.video is None else fn(self.video),
            None if self.audio is None else fn(self.audio),
        )
