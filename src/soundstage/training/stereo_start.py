"""Start an audio VAE with a path for the difference between the ears.

Left and right are so alike that their difference is a twelfth of what they have in common. A new network
loses it among its features and the posterior's noise drowns the rest, so neither half has a reason to learn
it: a saddle, which plain training did not leave (measured, see docs/experiments.md). Here two channels of
every layer, with opposite signs because silu(u) - silu(-u) = u, carry the difference along the skips, and one
latent channel is given to it. From there training goes on as usual; nothing is kept fixed.
"""

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import LogMel
from soundstage.models.audio_vae.blocks import PIXEL_NORM_EPS, Downsample, ResBlock, Upsample
from soundstage.models.audio_vae.model import AudioVAE, Decoder, Encoder
from soundstage.nn.causal_conv import pixel_norm

PAIR = 2  # channels 0 and 1 of every layer: the difference and its negative
SHARE = 0.5  # of the other features' root mean square, that the difference gets
LOG_VARIANCE = -4.0  # of the posterior of the channel that is given to it

Side = Float[Tensor, "b 1 frames bins"]  # left minus right
Cells = Float[Tensor, "b 1 cells_t cells_m"]  # the same, averaged over what each latent cell stands for
Latents = Float[Tensor, "b c cells_t cells_m"]


@torch.no_grad()
def start_with_stereo(vae: AudioVAE, mel: LogMel) -> None:
    """Give the difference a path through both halves of a new VAE, scaled by sample spectrograms.

    The last latent channel is the difference, averaged over each cell.
    """
    if vae.encoder is None or vae.decoder is None:
        raise RuntimeError("a stereo start needs both halves of the audio VAE")
    side = mel[:, :1] - mel[:, 1:]  # (b, 1, frames, bins)
    cells = _cells(side, vae)
    _open_encoder(vae.encoder, mel, cells)
    _open_decoder(vae.decoder, vae.encode_posterior(mel)[0], side)


def _open_encoder(encoder: Encoder, mel: LogMel, cells: Cells) -> None:
    level = _features(encoder, mel).square().mean().sqrt() * SHARE / cells.std()
    _clear(encoder.conv_in.conv)
    for channel, sign in enumerate((1, -1)):
        encoder.conv_in.conv.weight[channel, :, -1, 1] = level * torch.tensor([sign, -sign]).to(mel)
    _keep_along(encoder.down, encoder.mid)
    half = encoder.conv_out.conv.out_channels // 2
    for row in (half - 1, -1):
        encoder.conv_out.conv.weight[row] = 0
    gain = _fit(_difference(_features(encoder, mel)), cells) / cells.std()
    encoder.conv_out.conv.weight[half - 1, :PAIR, -1, 1] = gain * torch.tensor([1.0, -1.0]).to(mel)
    if encoder.conv_out.conv.bias is not None:
        encoder.conv_out.conv.bias[half - 1], encoder.conv_out.conv.bias[-1] = 0, LOG_VARIANCE


def _open_decoder(decoder: Decoder, latents: Latents, side: Side) -> None:
    first = decoder.conv_in.conv
    first.weight[:, -1] = 0
    scale = _coarse(decoder, latents).square().mean().sqrt() * SHARE
    _clear(first)
    first.weight[:PAIR, -1, -1, 1] = scale * torch.tensor([1.0, -1.0]).to(latents)
    _keep_along(decoder.mid, decoder.up)
    last = decoder.conv_out.conv
    last.weight[:, :PAIR] = 0
    heard = _difference(_fine(decoder, latents))
    gain = _fit(heard, side[:, :, : heard.shape[2]]) / 2  # each ear gets half
    last.weight[:, :PAIR, -1, 1] = gain * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).to(latents)


def _keep_along(*parts: nn.Module) -> None:
    """Let the pair pass every layer, changed in resolution only, and nothing else read or write it."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, ResBlock):
                module.conv1.conv.weight[:, :PAIR] = 0
                _clear(module.conv2.conv)
                if module.nin_shortcut is not None:
                    _pass(module.nin_shortcut.conv, torch.ones(1, 1))
            elif isinstance(module, Downsample):
                taps = torch.zeros(3, 3)
                taps[1:, :2] = 0.25  # the two frames and the two bins that become one
                _pass(module.conv, taps)
            elif isinstance(module, Upsample):
                taps = torch.zeros(3, 3)
                taps[-1, 1] = 1
                _pass(module.conv.conv, taps)


def _pass(conv: nn.Conv2d, taps: Float[Tensor, "time bins"]) -> None:
    _clear(conv)
    conv.weight[PAIR:, :PAIR] = 0
    for channel in range(PAIR):
        conv.weight[channel, channel] = taps.to(conv.weight)


def _clear(conv: nn.Conv2d) -> None:
    """Silence what writes the pair."""
    conv.weight[:PAIR] = 0
    if conv.bias is not None:
        conv.bias[:PAIR] = 0


def _features(encoder: Encoder, mel: LogMel) -> Float[Tensor, "b c cells_t cells_m"]:
    x = encoder.conv_in(mel)
    for level in encoder.down:
        x = level(x)
    features: Tensor = encoder.mid(x)
    return features


def _coarse(decoder: Decoder, latents: Latents) -> Float[Tensor, "b c2 cells_t cells_m"]:
    features: Tensor = decoder.mid(decoder.conv_in(latents))
    return features


def _fine(decoder: Decoder, latents: Latents) -> Float[Tensor, "b c2 frames bins"]:
    x = _coarse(decoder, latents)
    for level in reversed(decoder.up):
        x = level(x)
    return x


def _difference(features: Float[Tensor, "b c t m"]) -> Float[Tensor, "b 1 t m"]:
    """Read the pair as the output convolution does, after its norm and SiLU."""
    shown = nn.functional.silu(pixel_norm(features, PIXEL_NORM_EPS))
    return shown[:, :1] - shown[:, 1:2]


def _cells(side: Side, vae: AudioVAE) -> Cells:
    """Average over what a latent cell stands for; the first cell stands for a single frame."""
    factor = vae.config.downsample_factor
    padded = nn.functional.pad(side, (0, 0, factor - 1, 0), mode="replicate")
    return reduce(padded, "b one (t f) (m g) -> b one t m", "mean", f=factor, g=factor)


def _fit(given: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    """Find the factor that brings one signal closest to another."""
    return (given * wanted).sum() / given.square().sum().clamp(min=1e-12)
