"""The video VAE on weights given by a formula, against published figures in float64."""

from typing import Any

import pytest
import torch

from formula import check, fill, ramp
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE


def config(last_multiplier: int, decoder_blocks: list[Any], padding: dict[str, str]) -> VideoVAEConfig:
    return VideoVAEConfig.from_header(
        {
            "latent_channels": 8,
            "encoder_base_channels": 8,
            "decoder_base_channels": 8,
            "encoder_blocks": [
                ["res_x", {"num_layers": 1}],
                ["compress_space_res", {"multiplier": 2}],
                ["res_x", {"num_layers": 2}],
                ["compress_time_res", {"multiplier": 2}],
                ["res_x", {"num_layers": 1}],
                ["compress_all_res", {"multiplier": 2}],
                ["res_x", {"num_layers": 1}],
                ["compress_all_res", {"multiplier": last_multiplier}],
                ["res_x", {"num_layers": 1}],
            ],
            "decoder_blocks": decoder_blocks,
            **padding,
        }
    )


UP = ["compress_all", {"residual": True, "multiplier": 2}]
CONFIGS = {
    "2.0": config(2, [["res_x", 1], UP, ["res_x", 1], UP, ["res_x", 2], UP, ["res_x", 1]], {}),
    "2.3": config(
        1,
        [
            ["res_x", 1],
            ["compress_space", {"multiplier": 2}],
            ["res_x", 1],
            ["compress_time", {"multiplier": 2}],
            ["res_x", 1],
            ["compress_all", {"multiplier": 1}],
            ["res_x", 1],
            ["compress_all", {"multiplier": 2}],
            ["res_x", 1],
        ],
        {"spatial_padding_mode": "zeros"},
    ),
}
ENCODED = {
    "2.0": (
        0.012292858,
        0.089141363,
        [-0.060010058, -0.061096098, -0.071946195, -0.073499114, -0.121123908],
        -0.034881458,
    ),
    "2.3": (
        0.015071075,
        0.102556782,
        [-0.090536799, -0.111994976, -0.061764955, -0.028089836, -0.146951670],
        -0.142399517,
    ),
}
DECODED = {
    "2.0": (
        0.002155193,
        0.342215857,
        [-0.659307423, 0.927939097, 0.636543526, -0.806766351, -0.452996847],
        0.591622944,
    ),
    "2.3": (
        0.001291077,
        0.274080539,
        [0.076767634, -0.052389837, -0.208915174, 0.079227558, 0.072962177],
        -0.009554678,
    ),
}


@pytest.mark.parametrize("generation", CONFIGS)
@torch.no_grad()
def test_encoder(generation: str) -> None:
    vae = fill_half(VideoVAE(CONFIGS[generation], decoder=False))
    check(vae.encode(ramp(1, 3, 9, 64, 64)), *ENCODED[generation])


@pytest.mark.parametrize("generation", CONFIGS)
@torch.no_grad()
def test_decoder(generation: str) -> None:
    vae = fill_half(VideoVAE(CONFIGS[generation], encoder=False))
    check(vae.decode(ramp(1, 8, 2, 2, 2)), *DECODED[generation])


def fill_half(vae: VideoVAE) -> VideoVAE:
    """Number the tensors as the published figures do: without the name of the half."""
    vae = vae.double()
    half = "encoder." if vae.encoder is not None else "decoder."
    filled = fill(vae, ignore_prefix=half)
    assert isinstance(filled, VideoVAE)
    return filled


@pytest.mark.parametrize(
    ("generation", "encoder", "decoder"),
    [("2.0", 694_098_881, 528_380_720), ("2.3", 318_936_897, 407_169_072)],
)
def test_full_size_parameters(generation: str, encoder: int, decoder: int) -> None:
    import gzip
    import json
    from pathlib import Path

    path = Path(__file__).parent / "headers" / f"ltx-{generation}.json.gz"
    header = json.loads(gzip.decompress(path.read_bytes()))
    with torch.device("meta"):
        vae = VideoVAE(VideoVAEConfig.from_header(header["config"]["vae"]))
    assert vae.encoder is not None
    assert vae.decoder is not None
    assert sum(p.numel() for p in vae.encoder.parameters()) == encoder
    assert sum(p.numel() for p in vae.decoder.parameters()) == decoder
    stated = {k: shape for k, shape in header["tensors"].items() if k.startswith("vae.")}
    assert {f"vae.{k}": list(t.shape) for k, t in vae.state_dict().items()} == stated
