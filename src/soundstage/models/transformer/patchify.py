"""Latents to tokens and back: a token per latent cell or square patch of cells, or audio latent frame."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from soundstage.core.types import AudioLatents, Tokens, VideoLatents


def patchify_video(latents: VideoLatents, patch_size: int = 1) -> Tokens:
    """Cut video latents into tokens, frame by frame, row by row.

    A patch's features are ordered channel, row, column, channel slowest.
    """
    return rearrange(
        latents, "b c f (h ph) (w pw) -> b (f h w) (c ph pw)", ph=patch_size, pw=patch_size
    ).contiguous()


def unpatchify_video(
    tokens: Tokens, latent_shape: tuple[int, int, int], patch_size: int = 1
) -> Float[Tensor, "b c f h w"]:
    """Put video tokens back together.

    Args:
        latent_shape: Latent frames, height and width, in latent cells.
    """
    frames, height, width = latent_shape
    return rearrange(
        tokens,
        "b (f h w) (c ph pw) -> b c f (h ph) (w pw)",
        f=frames,
        h=height // patch_size,
        w=width // patch_size,
        ph=patch_size,
        pw=patch_size,
    ).contiguous()


def patchify_audio(latents: AudioLatents) -> Tokens:
    """Make one token of every audio latent frame, channel slow, mel bin fast."""
    return rearrange(latents, "b c t m -> b t (c m)").contiguous()


def unpatchify_audio(tokens: Tokens, channels: int) -> AudioLatents:
    """Put audio tokens back into latent channels and mel bins."""
    return rearrange(tokens, "b t (c m) -> b c t m", c=channels).contiguous()
