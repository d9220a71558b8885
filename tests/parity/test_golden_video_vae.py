"""The video VAE gives the recorded reference outputs."""

import pytest
import torch

from golden_cases import cases, load_case, load_checkpoint
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE

UNUSED = {"channel", "mean-of-stds", "mean-of-stds_over_std-of-means"}


def load_vae(name: str) -> VideoVAE:
    config, tensors = load_checkpoint(name, "vae.")
    vae = VideoVAE(VideoVAEConfig.from_header(config["vae"])).eval()
    vae.load_state_dict({k: v for k, v in tensors.items() if k.split(".")[-1] not in UNUSED})
    return vae


def as_pixels(video_u8: torch.Tensor) -> torch.Tensor:
    return video_u8.float() / 127.5 - 1


@pytest.mark.parametrize("case_id", cases("video_vae"))
@torch.inference_mode()
def test_video_vae_matches_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    vae = load_vae(case.spec["checkpoint"])
    if "video_u8" in case.inputs:
        pixels = as_pixels(case.inputs["video_u8"])
        case.check("latent", vae.encode(pixels[:, :, : vae.geometry.crop_num_frames(pixels.shape[2])]))
        return
    pixels = vae.decode(case.inputs["latent"])
    case.check("video", pixels)
    if "frames_u8" in case.outputs:
        frames = ((pixels.clamp(-1, 1) + 1) / 2 * 255)[0].movedim(0, -1)
        case.check("frames_u8", frames.to(torch.uint8))
