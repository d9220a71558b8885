"""A solved start is as good as principal components, and stays so under small steps."""

from typing import Any

import pytest
import torch
from einops import rearrange

from soundstage.core.errors import ConfigError
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.training.principal_start import (
    shield_constants,
    solve_decoder,
    start_from_principal_components,
)

HEADER: dict[str, Any] = {
    "latent_channels": 8,
    "patch_size": 4,
    "encoder_base_channels": 32,
    "decoder_base_channels": 32,
    "spatial_padding_mode": "zeros",
    "encoder_blocks": [
        ["res_x", 1],
        ["compress_time_res", {"multiplier": 2}],
        ["compress_time_res", {"multiplier": 2}],
    ],
    "decoder_blocks": [
        ["res_x", 1],
        ["compress_time", {"multiplier": 2, "residual": True}],
        ["res_x", 1],
        ["compress_time", {"multiplier": 1, "residual": True}],
    ],
}  # 4 frames and 4 × 4 pixels per cell


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """Smooth moving pictures: sums of a few drifting waves."""
    generator = torch.Generator().manual_seed(0)
    t, y, x = torch.meshgrid(torch.arange(9.0), torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = []
    for _ in range(8 * 3 * 3):
        a, b, c, phase = (torch.rand(4, generator=generator) - 0.5).tolist()
        waves.append(torch.sin(a * t + b * y + c * x + 6 * phase))
    return torch.stack(waves).view(8, 3, 3, 9, 16, 16).mean(2)


def new_vae(header: dict[str, Any] = HEADER) -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(VideoVAEConfig.from_header(header))
    vae.per_channel_statistics.get_buffer("mean-of-means").zero_()
    vae.per_channel_statistics.get_buffer("std-of-means").fill_(1)
    return vae


@torch.no_grad()
def error(vae: VideoVAE, clips: torch.Tensor) -> float:
    return (vae.decode(vae.encode(clips)) - clips).square().mean().item()


def best_linear_error(clips: torch.Tensor, count: int) -> float:
    cells = rearrange(clips[:, :, 1:], "b c (f p) (h q) (w r) -> (b f h w) (c p q r)", p=4, q=4, r=4)
    centred = cells - cells.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:count]
    return (centred - centred @ directions.T @ directions).square().mean().item()


def test_the_start_is_nearly_as_good_as_principal_components(clips: torch.Tensor) -> None:
    vae = new_vae()
    before = error(vae, clips)
    start_from_principal_components(vae, clips)
    best = best_linear_error(clips, 8)
    assert error(vae, clips) < 1.3 * best
    assert error(vae, clips) < 0.3 * before


def test_latents_start_at_unit_deviation_with_small_noise(clips: torch.Tensor) -> None:
    vae = new_vae()
    start_from_principal_components(vae, clips)
    posterior = vae.posterior(clips)
    torch.testing.assert_close(posterior.mean.std(dim=(0, 2, 3, 4)), torch.ones(8), atol=0.05, rtol=0)
    assert posterior.log_variance.max() < -5


def test_a_decoder_can_be_solved_for_a_given_encoder(clips: torch.Tensor) -> None:
    vae = new_vae()
    start_from_principal_components(vae, clips)
    good, latents = error(vae, clips), vae.encode(clips)
    assert vae.decoder is not None
    torch.nn.init.zeros_(vae.decoder.conv_out.conv.weight)
    assert error(vae, clips) > 2 * good
    solve_decoder(vae, clips)
    assert error(vae, clips) == pytest.approx(good, rel=0.05)
    assert torch.equal(vae.encode(clips), latents)


def test_no_gradient_reaches_weights_that_read_a_constant(clips: torch.Tensor) -> None:
    vae = new_vae()
    start_from_principal_components(vae, clips)
    shield_constants(vae, clips[:2])
    vae.decode(vae.posterior(clips[:2]).mean).square().mean().backward()
    assert vae.decoder is not None
    grad = vae.decoder.conv_out.conv.weight.grad
    assert grad is not None
    columns = grad.abs().sum(dim=(0, 2, 3, 4))
    assert (columns == 0).sum() == 2  # the constant with both signs
    assert (columns > 0).sum() == len(columns) - 2


def test_training_goes_on_from_the_start(clips: torch.Tensor) -> None:
    vae = new_vae()
    start_from_principal_components(vae, clips)
    shield_constants(vae, clips[:2])
    before = error(vae, clips)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-4)
    for _ in range(25):
        optimizer.zero_grad()
        (vae.decode(vae.posterior(clips).mean) - clips).square().mean().backward()
        optimizer.step()
    assert error(vae, clips) < before


def test_pictures_that_shrink_inside_the_network_are_refused(clips: torch.Tensor) -> None:
    blocks = {
        "encoder_blocks": [["compress_space_res", {"multiplier": 2}]],
        "decoder_blocks": [["compress_space", {"multiplier": 2}]],
    }
    with pytest.raises(ConfigError, match="needs patch_size=8"):
        start_from_principal_components(new_vae(HEADER | blocks), clips)
