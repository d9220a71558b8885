"""Full-size audio networks and upsamplers on weights given by a formula, against published figures.

Every weight is a sine of its place, so no file is needed. The figures come from the reference in float64.
"""

import math

import pytest
import torch
from torch import nn

from formula import check, fill, ramp
from soundstage.dsp.mel import MelConfig, log_mel
from soundstage.dsp.resample import resample
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.models.vocoder.bandwidth_extension import interpolate
from soundstage.models.vocoder.bigvgan import AMPGenerator
from soundstage.models.vocoder.config import GeneratorConfig, VocoderConfig
from soundstage.models.vocoder.hifigan import HiFiGANVocoder


def on_meta(build, *args, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return build(*args, **kwargs)


@torch.no_grad()
def test_audio_encoder() -> None:
    vae = fill(on_meta(AudioVAE, AudioVAEConfig.from_header({}), decoder=False), ignore_prefix="encoder.")
    latents = vae.encode(ramp(1, 2, 17, 64))
    assert latents.shape == (1, 8, 5, 16)
    check(
        latents,
        -0.015753581,
        0.096002339,
        [-0.178179045, -0.308163977, -0.315910589, -0.113954232, -0.033191067],
        -0.213950480,
    )


@torch.no_grad()
def test_audio_decoder() -> None:
    vae = fill(on_meta(AudioVAE, AudioVAEConfig.from_header({}), encoder=False), ignore_prefix="decoder.")
    mel = vae.decode(ramp(1, 8, 5, 16))
    assert mel.shape == (1, 2, 17, 64)
    check(
        mel,
        -0.122072353,
        0.122072353,
        [-0.154672581, -0.186396067, -0.190543833, -0.188606292, -0.188470770],
        -0.088366617,
    )


@torch.no_grad()
def test_hifigan_vocoder() -> None:
    generator = GeneratorConfig(
        upsample_initial_channel=1024,
        upsample_rates=(6, 5, 2, 2, 2),
        upsample_kernel_sizes=(16, 15, 8, 4, 4),
    )
    waveform = fill(on_meta(HiFiGANVocoder, VocoderConfig(generator=generator)))(ramp(1, 2, 5, 64))
    assert waveform.shape == (1, 2, 1200)
    check(
        waveform,
        0.074790805,
        0.083307167,
        [0.357377696, 0.327833286, 0.278637699, 0.254323982, 0.243306075],
        -0.344825272,
    )


@torch.no_grad()
def test_anti_aliased_generator() -> None:
    config = GeneratorConfig(
        upsample_initial_channel=1536,
        upsample_rates=(5, 2, 2, 2, 2, 2),
        upsample_kernel_sizes=(11, 4, 4, 4, 4, 4),
        resblock="AMP1",
        use_bias_at_final=False,
        use_tanh_at_final=False,
    )
    waveform = fill(on_meta(AMPGenerator, config))(ramp(1, 2, 3, 64))
    assert waveform.shape == (1, 2, 480)
    check(
        waveform,
        0.000373380,
        0.001292113,
        [0.026240096, 0.018110380, 0.007614957, 0.004054513, -0.011653872],
        -0.070874154,
    )


def test_interpolation_by_three() -> None:
    check(
        interpolate(ramp(1, 2, 160), 3),
        0.005840304,
        0.638958900,
        [0.199470977, 0.271375230, 0.375468987, 0.487433928, 0.586983805],
        -0.990409650,
    )


UPSAMPLERS = {
    "rational": (
        {"rational_resampler": True},
        (1, 16, 2, 6, 8),
        0.009234544,
        0.117163050,
        [0.222555023, 0.305122819, 0.292997332, 0.308638378, 0.306563348],
        0.142660275,
    ),
    "temporal": (
        {"spatial_upsample": False, "temporal_upsample": True},
        (1, 16, 3, 3, 4),
        0.008263583,
        0.163938808,
        [-0.101537933, -0.169112070, -0.015841065, 0.025526616, 0.268507115],
        0.026057039,
    ),
}


@pytest.mark.parametrize("kind", UPSAMPLERS)
@torch.no_grad()
def test_upsampler(kind: str) -> None:
    section, shape, *figures = UPSAMPLERS[kind]
    config = LatentUpsamplerConfig.from_header(
        {"in_channels": 16, "mid_channels": 64, "num_blocks_per_stage": 2, **section}
    )
    latents = fill(on_meta(LatentUpsampler, config))(ramp(1, 16, 2, 3, 4))
    assert latents.shape == shape == (1, 16, *config.output_size(2, 3, 4))
    check(latents, *figures)


def test_mel_of_two_tones() -> None:
    time = torch.arange(16_000) / 16_000
    wave = 0.5 * torch.sin(2 * math.pi * 1000 * time) + 0.1 * torch.sin(2 * math.pi * 3000 * time)
    mel = log_mel(wave.expand(1, 2, -1), MelConfig())[0, 1]
    assert mel.shape == (101, 64)
    middle = mel[50]
    loud = {20: 0.92448, 21: 1.04109, 43: -1.69845, 44: -1.74988}
    for index, value in loud.items():
        assert middle[index].item() == pytest.approx(value, abs=1e-4)
    assert max(middle[i].item() for i in range(64) if i not in loud) < -8.7
    first = torch.tensor([-1.76689, -1.76057, -1.75003, -1.73503, -1.71544])
    torch.testing.assert_close(mel[0, :5], first, atol=1e-4, rtol=0)


def test_resampled_tone() -> None:
    wave = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(4410) / 44_100)
    result = resample(wave[None, None], 44_100, 16_000)[0, 0]
    assert result.shape == (1600,)
    start = torch.tensor([0.008124, 0.084856, 0.170010, 0.247565, 0.318973])
    torch.testing.assert_close(result[:5], start, atol=3e-6, rtol=0)
    middle = torch.tensor([0.0, 0.085984, 0.169408, 0.247785, 0.318784])
    torch.testing.assert_close(result[800:805], middle, atol=3e-6, rtol=0)
