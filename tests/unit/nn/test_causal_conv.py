"""Convolutions over video keep the layout that their device is fastest with."""

import pytest
import torch
from torch import nn

from soundstage.models.video_vae.config import Block, VideoVAEConfig
from soundstage.models.video_vae.model import Encoder
from soundstage.nn.causal_conv import VideoConv, mirrored
from soundstage.runtime.layout import lay_out

LAST = torch.channels_last_3d


def frames(device: str = "cpu") -> torch.Tensor:
    x = torch.randn(1, 6, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    return x.to(device).contiguous(memory_format=LAST)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_what_is_convolved_has_its_channels_last_if_the_clip_has(padding, causal) -> None:
    """On meta, padding gives the layout that CUDA's gives: channels first."""
    assert not nn.functional.pad(frames("meta"), (1, 1, 1, 1, 0, 0), mode="reflect").is_contiguous(
        memory_format=LAST
    )
    layer, seen = VideoConv(6, 8, causal=causal, padding=padding).to("meta"), []
    layer.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layer(frames("meta"))
    assert seen[0].is_contiguous(memory_format=LAST)


def test_mirroring_gives_the_same_bits_in_either_layout() -> None:
    x = frames()
    wanted = nn.functional.pad(x.contiguous(), (1, 1, 1, 1, 0, 0), mode="reflect")
    assert torch.equal(mirrored(x), wanted)
    assert torch.equal(mirrored(x.contiguous()), wanted)


def test_the_encoder_keeps_its_layout_within_groups_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VideoVAEConfig(
        latent_channels=4,
        encoder_base_channels=8,
        decoder_base_channels=4,
        encoder_blocks=(
            Block(kind="compress_all_res", multiplier=2),
            Block(kind="res_x", num_layers=3),
        ),
        decoder_blocks=(Block(kind="compress_all", multiplier=2),),
    )
    encoder, seen = Encoder(config).requires_grad_(False), []
    lay_out(encoder, torch.device("cuda"))
    over = VideoConv.over

    def recorded(self, x):
        seen.append(x.is_contiguous(memory_format=LAST))
        return over(self, x)

    monkeypatch.setattr(VideoConv, "over", recorded)
    encoder(torch.randn(1, 3, 3, 32, 32))
    assert len(seen) == 1 + 1 + 6 + 1
    assert not all(seen[:3]), "what was shuffled comes with channels first"
    assert all(seen[3:])


def test_weights_are_laid_out_on_a_gpu_alone() -> None:
    vae = VideoConv(4, 4, causal=True)
    lay_out(vae, torch.device("cpu"))
    assert vae.conv.weight.is_contiguous()
    before = vae.conv.weight.clone()
    lay_out(vae, torch.device("cuda"))
    assert vae.conv.weight.is_contiguous(memory_format=LAST)
    assert torch.equal(vae.conv.weight, before)
