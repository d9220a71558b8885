"""The video VAE against another implementation, diffusers, on the same random weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusers_pairs import video_vae_pair
from soundstage.models.video_vae.model import VideoVAE

UP = ["compress_all", {"residual": True, "multiplier": 2}]
OURS = {
    "latent_channels": 8,
    "encoder_base_channels": 8,
    "decoder_base_channels": 8,
    "encoder_blocks": [
        ["res_x", 1],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", 2],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", 1],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", 1],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", 1],
    ],
    "decoder_blocks": [["res_x", 1], UP, ["res_x", 1], UP, ["res_x", 2], UP, ["res_x", 1]],
}
THEIRS: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": (16, 32, 64, 128),
    "decoder_block_out_channels": (16, 32, 64),
    "layers_per_block": (1, 2, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 2, 1),
    "encoder_causal": True,
    "decoder_causal": False,
    "encoder_spatial_padding_mode": "zeros",
}


@pytest.fixture(scope="module", params=["reflect", "zeros"])
def pair(request: pytest.FixtureRequest) -> tuple[VideoVAE, Any]:
    """Build both with the same weights."""
    padding = {"encoder_spatial_padding_mode": "zeros", "decoder_spatial_padding_mode": request.param}
    return video_vae_pair(OURS | padding, {**THEIRS, "decoder_spatial_padding_mode": request.param})


@pytest.mark.parametrize(("frames", "height", "width"), [(9, 64, 64), (1, 64, 96), (17, 96, 64)])
@torch.no_grad()
def test_encoder(pair: tuple[VideoVAE, Any], frames: int, height: int, width: int) -> None:
    ours, theirs = pair
    pixels = torch.rand(1, 3, frames, height, width) * 2 - 1
    expected: Tensor = theirs.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(ours.encode(pixels), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("frames", "rows", "columns"), [(2, 2, 2), (1, 2, 3), (3, 3, 2)])
@torch.no_grad()
def test_decoder(pair: tuple[VideoVAE, Any], frames: int, rows: int, columns: int) -> None:
    ours, theirs = pair
    latents = torch.randn(1, 8, frames, rows, columns)
    expected: Tensor = theirs.decode(latents).sample
    torch.testing.assert_close(ours.decode(latents), expected, atol=1e-5, rtol=1e-4)
