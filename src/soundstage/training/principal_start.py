"""Start a video VAE as a linear codec of principal components, so that training begins where algebra ends.

A randomly initialised VAE needs thousands of steps to reach what principal components of its cells give at
once (measured, see docs/experiments.md). Here residual and shuffle convolutions start at zero, so only the
shortcuts speak; `conv_in` and `conv_out` of both halves are then solved in closed form. Activations stand in
the way of linearity twice, and are made to step aside:

- pixel norm: one large constant channel makes the norm nearly constant;
- SiLU: each coefficient travels with both signs, and silu(u) - silu(-u) = u. In the decoder the second copy
  is the one that upsampling with multiplier 1 makes; without one, the least-squares fit does what it can.

No convolution may learn to read the constant channel: it is so large and so alike everywhere that the
smallest weight on it would shift whole pictures. `shield_constants` keeps gradients off those weights.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from soundstage.core.errors import ConfigError
from soundstage.core.types import VideoPixels
from soundstage.models.video_vae.blocks import PIXEL_NORM_EPS, Downsample, ResBlock, Upsample, patchify
from soundstage.models.video_vae.model import Decoder, Encoder, VideoVAE
from soundstage.nn.causal_conv import VideoConv, pixel_norm

CONSTANT = 200.0  # of the channel that keeps the norm still; coefficients are small beside it
CONSTANT_VARIATION = 0.1  # a channel whose deviation is a smaller share of its mean counts as constant
LOG_VARIANCE = -6.0  # deviation 0.05 beside latents of deviation 1
RIDGE = 1e-4

Rows = Float[Tensor, "rows columns"]


@torch.no_grad()
def start_from_principal_components(vae: VideoVAE, clips: VideoPixels) -> None:
    """Set the weights of a VAE with both halves from sample clips.

    Raises:
        ConfigError: A block list compresses space beyond the patch, so that shortcuts lose what they average.
    """
    if vae.geometry.spatial_factor != vae.config.patch_size or vae.encoder is None or vae.decoder is None:
        raise ConfigError(
            f"a principal start needs patch_size={vae.geometry.spatial_factor}, the spatial compression"
        )
    for module in vae.modules():
        if isinstance(module, ResBlock):
            _zero(module.conv2)
        elif isinstance(module, Downsample | Upsample):
            _zero(module.conv)
    patches = patchify(clips, vae.config.patch_size)
    basis, mean = _principal(_rows(patches), vae.encoder.conv_in.conv.out_channels // 2 - 1)
    _set_centre(vae.encoder.conv_in, *_signed(basis, mean))
    _solve_encoder(vae.encoder, clips)
    solve_decoder(vae, clips)


@torch.no_grad()
def solve_decoder(vae: VideoVAE, clips: VideoPixels) -> None:
    """Set the decoder to the best linear one for the latents that the encoder gives."""
    if vae.decoder is None:
        raise ConfigError("a principal start needs a decoder")
    _solve_decoder(vae.decoder, vae.posterior(clips).mean, patchify(clips, vae.config.patch_size))


@torch.no_grad()
def shield_constants(vae: VideoVAE, clips: VideoPixels) -> None:
    """Keep gradients off weights that read channels which never change; residual blocks never read them."""
    readers = [m for m in vae.modules() if isinstance(m, ResBlock | Downsample | Upsample)]
    convs = [reader.conv1 if isinstance(reader, ResBlock) else reader.conv for reader in readers]
    convs += [half.conv_out for half in (vae.encoder, vae.decoder) if half is not None]
    for conv, changing in _changing_channels(vae, convs, clips).items():
        mask = changing.to(conv.conv.weight.dtype).view(1, -1, 1, 1, 1)
        if conv.conv.weight.requires_grad:
            conv.conv.weight.register_hook(mask.mul)  # type: ignore[no-untyped-call]  # torch leaves it so
        if any(isinstance(reader, ResBlock) and reader.conv1 is conv for reader in readers):
            conv.conv.weight *= mask


def _changing_channels(
    vae: VideoVAE, convs: list[VideoConv], clips: VideoPixels
) -> dict[VideoConv, Bool[Tensor, " c"]]:
    """Watch what each convolution reads, and tell which of its channels carry anything but a constant."""
    changing: dict[VideoConv, Tensor] = {}

    def watch(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(conv, VideoConv):
            channels = inputs[0].transpose(0, 1).flatten(1)
            changing[conv] = channels.std(dim=1) > CONSTANT_VARIATION * channels.mean(dim=1).abs()

    handles = [conv.register_forward_pre_hook(watch) for conv in convs]
    vae.decode(vae.per_channel_statistics.normalise(vae.posterior(clips).mean))
    for handle in handles:
        handle.remove()
    return changing


def _solve_encoder(encoder: Encoder, clips: VideoPixels) -> Tensor:
    """Make the posterior mean the leading principal components of each cell, at unit deviation."""
    features = _features(encoder.down_blocks, encoder.conv_in(patchify(clips, encoder.config.patch_size)))
    count = encoder.config.latent_channels
    rows = _rows(features)
    basis, mean = _principal(rows, count)
    scores = (rows - mean) @ basis.T
    scores /= scores.std(dim=0)
    weight, bias = _least_squares(rows, scores)
    extra = encoder.conv_out.conv.out_channels - count
    _set_centre(
        encoder.conv_out,
        torch.cat([weight, weight.new_zeros(extra, weight.shape[1])]),
        torch.cat([bias, bias.new_full((extra,), LOG_VARIANCE)]),
    )
    return _unrows(rows @ weight.T + bias, features)


def _solve_decoder(decoder: Decoder, latents: Tensor, patches: Tensor) -> None:
    """Predict each frame's coefficients from its cell, then pixels from coefficients."""
    half = decoder.conv_out.conv.in_channels // 2
    basis, mean = _principal(_rows(patches), half - 1)
    last = [block for block in decoder.up_blocks if isinstance(block, Upsample)][-1]
    width = last.conv.conv.out_channels
    flip = latents.new_zeros(width, last.conv.conv.in_channels)
    flip[range(width // 2, width), range(width // 2, width)] = -2.0  # the second copy gets the other sign
    _set_centre(last.conv, flip, latents.new_zeros(width))
    spread = _spread_of_cells(decoder)  # (coefficients of all frames of a cell, width of conv_in)
    frames = spread.shape[0] // half
    coefficients = (patches.movedim(1, -1) - mean) @ basis.T
    constant = torch.full_like(coefficients[..., :1], CONSTANT)
    wanted = torch.cat([coefficients, constant], dim=-1)  # (b, frames, rows, columns, half)
    wanted = torch.cat([wanted[:, :1].expand(-1, frames - 1, -1, -1, -1), wanted], dim=1)
    cells = rearrange(wanted, "b (f p) h w c -> (b f h w) (p c)", p=frames)
    weight, bias = _least_squares(_rows(latents), cells)
    inverse = torch.linalg.pinv(spread)
    _set_centre(decoder.conv_in, inverse @ weight, inverse @ bias)
    features = _features(decoder.up_blocks, decoder.conv_in(latents))
    _set_centre(decoder.conv_out, *_least_squares(_rows(features), _rows(patches)))


def _spread_of_cells(decoder: Decoder) -> Rows:
    """Find by probing how the channels of a cell reach the first half of the channels of its frames."""
    width, half = decoder.conv_in.conv.out_channels, decoder.conv_out.conv.in_channels // 2
    probe = decoder.conv_in.conv.weight.new_zeros(width, width, 2, 1, 1)
    probe[range(width), range(width), 1] = 1.0  # the second cell: the first is cut to one frame
    for block in decoder.up_blocks:
        if isinstance(block, Upsample):
            probe = block(probe)
    frames = probe[:, :half, 1:, 0, 0]  # (width, half, frames)
    return frames.permute(2, 1, 0).flatten(0, 1)


def _features(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return nn.functional.silu(pixel_norm(x, PIXEL_NORM_EPS))


def _signed(basis: Rows, mean: Float[Tensor, " columns"]) -> tuple[Tensor, Tensor]:
    """Build weight and bias of coefficients, a constant, and the same with the other sign."""
    weight = torch.cat([basis, torch.zeros_like(basis[:1])])
    bias = -weight @ mean
    bias[-1] = CONSTANT
    return torch.cat([weight, -weight]), torch.cat([bias, -bias])


def _principal(rows: Rows, count: int) -> tuple[Float[Tensor, "count columns"], Float[Tensor, " columns"]]:
    """Return the leading principal directions and the mean."""
    mean = rows.mean(dim=0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    return torch.linalg.eigh(covariance).eigenvectors[:, -count:].T.flip(0), mean


def _least_squares(inputs: Rows, targets: Float[Tensor, "rows outputs"]) -> tuple[Tensor, Tensor]:
    """Solve for weight and bias of the best linear map, slightly regularised."""
    centre, target_centre = inputs.mean(dim=0), targets.mean(dim=0)
    x = (inputs - centre).double()
    gram = x.T @ x / len(x)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram, x.T @ (targets - target_centre).double() / len(x)).T.float()
    return weight, target_centre - weight @ centre


def _rows(x: Float[Tensor, "b c f h w"]) -> Float[Tensor, "rows c"]:
    return x.movedim(1, -1).flatten(0, 3)


def _unrows(rows: Rows, like: Float[Tensor, "b c f h w"]) -> Tensor:
    return rows.view(like.shape[0], *like.shape[2:], -1).movedim(-1, 1)


def _zero(conv: VideoConv) -> None:
    nn.init.zeros_(conv.conv.weight)
    if conv.conv.bias is not None:
        nn.init.zeros_(conv.conv.bias)


def _set_centre(conv: VideoConv, weight: Rows, bias: Float[Tensor, " outputs"]) -> None:
    """Let a 3×3×3 kernel look at its own position only; causal kernels see it at their last step in time."""
    _zero(conv)
    conv.conv.weight[:, :, 2 if conv.causal else 1, 1, 1] = weight
    if conv.conv.bias is not None:
        conv.conv.bias.copy_(bias)
