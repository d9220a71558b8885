"""The audio networks at full size on the meta device against the official files' names and shapes."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.model import build_vocoder

HEADERS = Path(__file__).parent / "headers"


def official(generation: str) -> dict:
    return json.loads(gzip.decompress((HEADERS / f"ltx-{generation}.json.gz").read_bytes()))


def table(header: dict, prefix: str) -> dict[str, list[int]]:
    tensors = header["tensors"].items()
    return {name.removeprefix(prefix): shape for name, shape in tensors if name.startswith(prefix)}


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_audio_vae(generation: str) -> None:
    header = official(generation)
    config = AudioVAEConfig.from_header(header["config"]["audio_vae"])
    with torch.device("meta"):
        vae = AudioVAE(config)
    assert shapes(vae) == table(header, "audio_vae.")
    assert len(shapes(vae)) == 102
    assert (count(vae.encoder), count(vae.decoder)) == (21_333_008, 31_915_138)
    assert AudioVAEConfig.from_header(config.to_header()) == config == AudioVAEConfig.from_header({})


@pytest.mark.parametrize(
    ("generation", "tensors", "parameters", "elements", "rate"),
    [("2.0", 194, 55_592_802, 55_592_802, 24_000), ("2.3", 1227, 128_537_448, 129_085_032, 48_000)],
)
def test_vocoder(generation: str, tensors: int, parameters: int, elements: int, rate: int) -> None:
    header = official(generation)
    config = VocoderConfig.from_header(header["config"]["vocoder"])
    with torch.device("meta"):
        vocoder = build_vocoder(config)
    assert shapes(vocoder) == table(header, "vocoder.")
    assert len(shapes(vocoder)) == tensors
    assert count(vocoder) == parameters
    assert sum(t.numel() for t in vocoder.state_dict().values()) == elements
    assert vocoder.sample_rate == rate
    assert VocoderConfig.from_header(config.to_header()) == config


@pytest.mark.parametrize(
    ("section", "tensors", "parameters"),
    [
        ({"mid_channels": 1024, "rational_resampler": True}, 73, 497_867_904),
        ({"mid_channels": 1024}, 72, 497_867_904),
        ({"mid_channels": 1024, "rational_resampler": True, "spatial_scale": 1.5}, 73, 545_058_944),
        (
            {
                "spatial_upsample": False,
                "temporal_upsample": True,
                "rational_resampler": True,
                "spatial_scale": 1.0,
            },
            72,
            130_968_192,
        ),
    ],
)
def test_upsampler(section: dict, tensors: int, parameters: int) -> None:
    config = LatentUpsamplerConfig.from_header(section)
    with torch.device("meta"):
        upsampler = LatentUpsampler(config)
    assert (len(shapes(upsampler)), count(upsampler)) == (tensors, parameters)
    assert LatentUpsamplerConfig.from_header(config.to_header()) == config
