"""Audio VAE, vocoders and upsamplers against diffusers on the same random weights."""

import pytest
import torch

from diffusers_pairs import randomise, vocoder_names, vocoder_pair
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.models.vocoder.config import BandwidthExtensionConfig, GeneratorConfig, VocoderConfig
from soundstage.models.vocoder.model import build_vocoder

KERNELS, DILATIONS = (3, 5), ((1, 3), (1, 2))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("ch_mult", "blocks", "frames"), [((1, 2, 4), 1, 13), ((2, 1, 1), 2, 6)])
@torch.no_grad()
def test_audio_vae(ch_mult: tuple[int, ...], blocks: int, frames: int) -> None:
    from diffusers import AutoencoderKLLTX2Audio

    config = AudioVAEConfig(ch=8, ch_mult=ch_mult, num_res_blocks=blocks, z_channels=3)
    ours = randomise(AudioVAE(config))
    ours.per_channel_statistics.measure(torch.randn(4, 3, 5, config.latent_bins))
    theirs = AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=ch_mult, num_res_blocks=blocks, latent_channels=3
    ).eval()
    tensors = {k: t for k, t in ours.state_dict().items() if not k.startswith("per_channel_statistics")}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert (set(missing), unexpected) == ({"latents_mean", "latents_std"}, [])

    mel = torch.randn(2, 2, frames, 64)
    mean, log_variance = ours.encode_posterior(mel)
    posterior = theirs.encode(mel).latent_dist
    torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_variance, posterior.logvar, atol=1e-5, rtol=1e-5)
    decoded = ours.decode(ours.per_channel_statistics.normalise(mean))
    torch.testing.assert_close(decoded, theirs.decode(mean).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hifigan_vocoder() -> None:
    ours, theirs = vocoder_pair(
        {
            "upsample_initial_channel": 16,
            "upsample_rates": (3, 2),
            "upsample_kernel_sizes": (7, 4),
            "resblock_kernel_sizes": KERNELS,
            "resblock_dilation_sizes": DILATIONS,
            "num_mels": 8,
        }
    )
    mel = torch.randn(2, 2, 9, 8)
    torch.testing.assert_close(ours(mel), theirs(mel), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bandwidth_extension_vocoder() -> None:
    from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE

    shared = {
        "upsample_initial_channel": 16,
        "resblock": "AMP1",
        "resblock_kernel_sizes": KERNELS,
        "resblock_dilation_sizes": DILATIONS,
        "num_mels": 8,
        "use_bias_at_final": False,
        "use_tanh_at_final": False,
    }
    config = VocoderConfig(
        generator=GeneratorConfig(upsample_rates=(5, 4), upsample_kernel_sizes=(11, 8), **shared),
        bandwidth_extension=BandwidthExtensionConfig(
            generator=GeneratorConfig(
                upsample_rates=(6, 5),
                upsample_kernel_sizes=(12, 11),
                apply_final_activation=False,
                **shared,
            ),
            input_sampling_rate=2000,
            output_sampling_rate=6000,
            hop_length=10,
            n_fft=64,
            win_size=64,
        ),
    )
    ours = randomise(build_vocoder(config))
    widths = {"in_channels": 16, "hidden_channels": 16}
    blocks = {"resnet_kernel_sizes": list(KERNELS), "resnet_dilations": [list(d) for d in DILATIONS]}
    theirs = LTX2VocoderWithBWE(
        **widths,
        **blocks,
        **{f"bwe_{name}": value for name, value in {**widths, **blocks}.items()},
        upsample_kernel_sizes=[11, 8],
        upsample_factors=[5, 4],
        bwe_upsample_kernel_sizes=[12, 11],
        bwe_upsample_factors=[6, 5],
        final_act_fn="clamp",  # the released configuration of diffusers leaves this clamp out
        filter_length=64,
        window_length=64,
        hop_length=10,
        num_mel_channels=8,
        input_sampling_rate=2000,
        output_sampling_rate=6000,
    ).eval()
    tensors = vocoder_names(ours)
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert all("resampler" in key for key in missing)
    assert not [key for key in unexpected if "inverse_basis" not in key]
    mel = torch.randn(2, 2, 6, 8)
    torch.testing.assert_close(ours(mel), theirs(mel), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "section",
    [
        {"rational_resampler": True},
        {"rational_resampler": True, "spatial_scale": 1.5},
        {"rational_resampler": False},
        {"spatial_upsample": False, "temporal_upsample": True},
        {"spatial_upsample": True, "temporal_upsample": True},
    ],
)
@torch.no_grad()
def test_upsampler(section: dict) -> None:
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel

    size = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1}
    config = LatentUpsamplerConfig(**size, **section)
    ours = randomise(LatentUpsampler(config))
    theirs = LTX2LatentUpsamplerModel(
        **size,
        spatial_upsample=config.spatial_upsample,
        temporal_upsample=config.temporal_upsample,
        rational_spatial_scale=config.spatial_scale,
        use_rational_resampler=config.is_rational,
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    latents = torch.randn(2, 4, 3, 4, 6)
    torch.testing.assert_close(ours(latents), theirs(latents), atol=1e-5, rtol=1e-5)
