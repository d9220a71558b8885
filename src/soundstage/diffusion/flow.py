"""The straight path from clean latents to noise, and what the network's prediction means on it.

    noisy = (1 - sigma) * clean + sigma * noise        sigma 0 = clean, 1 = noise
    velocity = noise - clean                           what the network predicts
    denoised = noisy - sigma * velocity                its estimate of `clean`

Everything here is computed in float32 or above, whatever the dtype of the network.
Source: rectified flow, Liu et al. 2022 (arXiv 2209.03003), section 2.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from soundstage.core.types import AV, BatchSigma, Timesteps, TokenMask, Tokens

GeneratedTokens = Bool[Tensor, "b n 1"]  # True for tokens of the result that are sampled


@runtime_checkable
class Stream(Protocol):
    """What sampling needs to know of one stream; `pipelines.conditions.StreamState` is one."""

    @property
    def latents(self) -> Tokens:
        """Where sampling starts before noise: zeros, or latents to refine."""

    @property
    def clean(self) -> Tokens:
        """What the kept tokens are."""

    @property
    def denoise_mask(self) -> TokenMask:
        """1 = generate, 0 = keep, fractions = partly."""

    @property
    def generated(self) -> GeneratedTokens:
        """Tokens that belong to the result and are sampled: what statistics are taken over."""

    @property
    def frozen(self) -> bool:
        """Whether the whole stream is given and never stepped."""


S = TypeVar("S", bound=Stream)


def moving(streams: AV[S]) -> AV[S]:
    """Return the streams that are sampled."""
    return AV(
        None if streams.video is None or streams.video.frozen else streams.video,
        None if streams.audio is None or streams.audio.frozen else streams.audio,
    )


def each_stream(fn: Callable[..., Tensor], *pairs: AV[Any], **constants: Any) -> AV[Tensor]:
    """Apply `fn` to the video members and to the audio members of `pairs`; an absent stream stays absent."""
    video = [pair.video for pair in pairs]
    audio = [pair.audio for pair in pairs]
    return AV(
        None if any(member is None for member in video) else fn(*video, **constants),
        None if any(member is None for member in audio) else fn(*audio, **constants),
    )


def add_noise(clean: Tokens, noise: Tokens, sigma: Timesteps | BatchSigma | float) -> Tokens:
    """Move clean latents along the path to the noise level `sigma`, per token, per sample or for all."""
    level = _per_token(sigma)
    return (1 - level) * _at_least_float32(clean) + level * _at_least_float32(noise)


def to_velocity(clean: Tokens, noise: Tokens) -> Tokens:
    """Return what the network learns to predict, the same at every point of the path."""
    return _at_least_float32(noise) - _at_least_float32(clean)


def to_denoised(noisy: Tokens, velocity: Tokens, sigma: Timesteps | BatchSigma | float) -> Tokens:
    """Read the estimate of the clean latents off a predicted velocity.

    A token with timestep 0 is returned unchanged, bit for bit: the network cannot move what is kept.
    """
    return _at_least_float32(noisy) - _per_token(sigma) * _at_least_float32(velocity)


def keep_clean(tokens: Tokens, clean: Tokens, denoise_mask: TokenMask) -> Tokens:
    """Put the clean latents back where the mask is 0; fractions blend.

    `lerp` is exact at both ends: kept tokens equal `clean` bit for bit.
    """
    tokens = _at_least_float32(tokens)
    return torch.lerp(clean.to(tokens.dtype), tokens, denoise_mask.to(tokens.dtype))


def starting_point(
    latents: Tokens, clean: Tokens, denoise_mask: TokenMask, noise: Tokens, scale: float
) -> Tokens:
    """Make the first sample of a stage: noise over the initial latents, the kept tokens clean.

    Args:
        scale: How much noise replaces `latents`: 1 starts afresh, the first sigma refines, 0 adds none.
    """
    noised = torch.lerp(_at_least_float32(latents), _at_least_float32(noise), scale)
    return keep_clean(noised, clean, denoise_mask)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _per_token(sigma: Tensor | float) -> Tensor | float:
    """View levels of shape (b,) or (b, n) so that they broadcast over (b, n, d)."""
    if not isinstance(sigma, Tensor):
        return sigma
    return sigma[:, None, None] if sigma.ndim == 1 else sigma[..., None]
