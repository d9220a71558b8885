"""The video decoder, chunk after chunk: the same pixels as at once, in memory that does not grow with the clip."""

from dataclasses import replace

import pytest
import torch

from soundstage.models.video_vae.config import Block, VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.streaming import decode_in_chunks

CONFIG = VideoVAEConfig(
    latent_channels=4,
    encoder_base_channels=4,
    decoder_base_channels=4,
    encoder_blocks=(
        Block(kind="compress_time_res", multiplier=1),
        Block(kind="compress_all_res", multiplier=1),
        Block(kind="compress_space_res", multiplier=1),
    ),
    decoder_blocks=(
        Block(kind="res_x", num_layers=2),
        Block(kind="compress_time", multiplier=1, residual=True),
        Block(kind="res_x", num_layers=1),
        Block(kind="compress_all", multiplier=2, residual=True),
        Block(kind="compress_space", multiplier=1),
    ),
    decoder_padding="reflect",
)  # 4 frames and 16 × 16 pixels per cell; both kinds of shortcut


def build(config: VideoVAEConfig = CONFIG, dtype: torch.dtype = torch.float64) -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(config, encoder=False).eval().requires_grad_(False)
    vae.per_channel_statistics.get_buffer("mean-of-means").copy_(torch.linspace(-1, 1, 4))
    vae.per_channel_statistics.get_buffer("std-of-means").copy_(torch.linspace(0.5, 2, 4))
    return vae.to(dtype)


def latents(frames: int, rows: int = 3, columns: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, frames, rows, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize(
    "changes", [{}, {"causal_decoder": True}, {"decoder_padding": "zeros"}], ids=["mirror", "causal", "zeros"]
)
def test_chunks_give_the_whole_clip(chunk: int, frames: int, changes: dict[str, object]) -> None:
    vae = build(replace(CONFIG, **changes))
    z = latents(frames)
    parts = list(decode_in_chunks(vae, z, chunk))
    torch.testing.assert_close(torch.cat(parts, dim=2), vae.decode(z), atol=1e-12, rtol=1e-12)


def test_a_clip_in_one_chunk_is_the_whole_clip_bit_for_bit() -> None:
    vae = build(dtype=torch.float32)
    z = latents(5).float()
    (part,) = decode_in_chunks(vae, z, 5)
    assert torch.equal(part, vae.decode(z))
