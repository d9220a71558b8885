"""The recorded reference outputs of the latent upsamplers."""

import pytest
import torch

from golden_cases import cases, load_case, load_checkpoint
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler


@pytest.mark.parametrize("case_id", cases("upsampler"))
@torch.no_grad()
def test_upsampler(case_id: str) -> None:
    case = load_case(case_id)
    config, tensors = load_checkpoint(case.spec["checkpoint"])
    with torch.device("meta"):
        upsampler = LatentUpsampler(LatentUpsamplerConfig.from_header(config))
    upsampler.load_state_dict(tensors, assign=True)
    latents = case.inputs["latent"]
    case.check("network", upsampler(latents))

    _, statistics = load_checkpoint(case.params["stats_checkpoint"], "vae.per_channel_statistics.")
    mean, std = (statistics[name].view(1, -1, 1, 1, 1) for name in ("mean-of-means", "std-of-means"))
    case.check("latent", (upsampler(latents * std + mean) - mean) / std)
