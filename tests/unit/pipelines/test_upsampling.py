"""What enlarges between stages: files, releases, and ways without training."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

import tiny
from golden_cases import GOLDEN, cases, load_case, load_checkpoint
from soundstage.checkpoints import keymap
from soundstage.checkpoints.versions.embedded import EMBEDDED
from soundstage.checkpoints.versions.ltx_2_3 import LTX_2_3
from soundstage.core.errors import CheckpointError, RequestError, ResourceError
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.models.video_vae.model import VideoVAE
from soundstage.pipelines.loading import load_components
from soundstage.pipelines.upsampling import (
    TRAIN_FREE,
    choose_upsampler,
    enlarge_latents,
    enlarge_pixels,
    upsample,
)
from soundstage.runtime.residency import Residency, bring


@pytest.mark.parametrize("case_id", cases("upsampler"))
def test_latents_are_enlarged_between_the_statistics_as_recorded(case_id: str) -> None:
    case = load_case(case_id)
    config, tensors = load_checkpoint(case.spec["checkpoint"])
    network = LatentUpsampler(LatentUpsamplerConfig.from_header(config))
    network.load_state_dict(tensors)
    model = GOLDEN / "checkpoints" / f"tiny-{case.params['stats_checkpoint']}.safetensors"
    vae = load_components(model, components=("video_vae",)).video_vae
    case.check("latent", upsample(network, vae, case.inputs["latent"]))


@pytest.mark.parametrize("missing", [0, 1])
def test_upsampler_and_statistics_are_on_the_device_together_or_refused(tmp_path: Path, missing: int) -> None:
    """Bringing one sent the other away when one byte was missing."""
    config, tensors = load_checkpoint(load_case(cases("upsampler")[0]).spec["checkpoint"])
    network = LatentUpsampler(LatentUpsamplerConfig.from_header(config))
    network.load_state_dict(tensors)
    vae = deepcopy(tiny.modules("embedded")[keymap.VIDEO_VAE])
    sizes = [sum(t.nbytes for t in net.state_dict().values()) for net in (network, vae)]
    residency = Residency(torch.device("meta"), sum(sizes) - missing)
    residency.manage("upsampler", network)
    residency.manage("video VAE", vae)
    bring(network)
    latents = torch.zeros(1, vae.config.latent_channels, 2, 2, 4, device="meta")
    if missing:
        with pytest.raises(ResourceError, match="used together"):
            upsample(network, vae, latents)
    else:
        assert upsample(network, vae, latents).is_meta


@pytest.mark.parametrize(
    ("options", "scale"),
    [({}, 2), ({"rational_resampler": True, "spatial_scale": 1.5}, 1.5)],
)
def test_file_says_by_how_much_it_enlarges(tmp_path: Path, options: dict, scale: float) -> None:
    path = tiny.write_upsampler(tmp_path / "upsampler.safetensors", **options)
    choice = choose_upsampler(str(path), EMBEDDED, 4)
    assert choice.scale == scale
    assert choice.is_trained
    assert choice.note == ""


@pytest.mark.parametrize("name", TRAIN_FREE)
def test_ways_without_training_say_so(name: str) -> None:
    choice = choose_upsampler(name, EMBEDDED, 4)
    assert choice.scale == 2
    assert not choice.is_trained
    assert f"upsampler '{name}', without a network trained for it" in choice.note


def test_missing_upsampler_of_a_release_is_an_error_that_says_which_file_to_get(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("SOUNDSTAGE_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"ltx-2.3-spatial-upscaler-x2-1.1.safetensors from huggingface"
    ):
        choose_upsampler(None, LTX_2_3, 128)


def test_upsampler_of_a_release_is_found_where_models_lie(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SOUNDSTAGE_MODELS", str(tmp_path))
    path = tiny.write_upsampler(tmp_path / "ltx-2.3-spatial-upscaler-x2-1.1.safetensors")
    assert choose_upsampler(None, LTX_2_3, 4).name == str(path)


def test_model_without_an_upsampler_says_what_can_be_done() -> None:
    with pytest.raises(CheckpointError, match="no upsampler was trained for the embedded model; --upsampler"):
        choose_upsampler(None, EMBEDDED, 4)


def test_wrong_files_are_named_as_what_they_are(tmp_path: Path) -> None:
    lora = tiny.write_lora(tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="LoRA"):
        choose_upsampler(str(lora), EMBEDDED, 4)
    temporal = {"spatial_upsample": False, "temporal_upsample": True}
    path = tiny.write_upsampler(tmp_path / "temporal.safetensors", **temporal)
    with pytest.raises(RequestError, match="does not make pictures larger"):
        choose_upsampler(str(path), EMBEDDED, 4)
    path = tiny.write_upsampler(tmp_path / "wide.safetensors", channels=8)
    with pytest.raises(CheckpointError, match="takes latents of 8 channels, this model's have 4"):
        choose_upsampler(str(path), EMBEDDED, 4)


@pytest.mark.parametrize("way", [enlarge_latents, enlarge_pixels])
def test_ways_without_training_double_the_size_and_keep_the_frames(way) -> None:
    vae = tiny.modules("embedded")[keymap.VIDEO_VAE]
    latents = torch.randn(1, 4, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    assert way(vae, latents, 2).shape == (1, 4, 2, 4, 8)


def test_interpolating_latents_leaves_even_ones_even() -> None:
    latents, vae = torch.full((1, 4, 2, 2, 2), 0.7), tiny.modules("embedded")[keymap.VIDEO_VAE]
    torch.testing.assert_close(enlarge_latents(vae, latents, 2), torch.full((1, 4, 2, 4, 4), 0.7))


def test_pixels_need_the_encoder() -> None:
    vae = VideoVAE(tiny.modules("embedded")[keymap.VIDEO_VAE].config, encoder=False)
    with pytest.raises(RequestError, match="needs the encoder of the video VAE"):
        enlarge_pixels(vae, torch.zeros(1, 4, 1, 2, 2), 2)
