"""The audio VAE: grid, causality, statistics, dtypes, training and what its header says."""

import dataclasses

import pytest
import torch

from soundstage.core.errors import ConfigError
from soundstage.dsp.mel import MelConfig
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE

TINY = AudioVAEConfig(
    ch=4,
    ch_mult=(1, 2, 1),
    num_res_blocks=1,
    z_channels=3,
    mel=MelConfig(num_mels=16, n_fft=512, win_length=512),
)


def tiny(**options: bool) -> AudioVAE:
    torch.manual_seed(0)
    vae = AudioVAE(TINY, **options)
    vae.per_channel_statistics.measure(torch.randn(2, 3, 8, 4))
    return vae.eval()


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 9, 13])
@torch.no_grad()
def test_four_frames_become_one_and_the_first_stands_alone(frames: int) -> None:
    vae = tiny()
    latents = vae.encode(torch.randn(2, 2, frames, 16))
    tokens = -(-frames // 4)
    assert latents.shape == (2, 3, tokens, 4)
    assert vae.decode(latents).shape == (2, 2, 4 * tokens - 3, 16)
    assert TINY.geometry().num_mel_frames(tokens) == 4 * tokens - 3


@torch.no_grad()
def test_encoding_the_beginning_gives_the_beginning_of_the_latents() -> None:
    vae, mel = tiny(), torch.randn(1, 2, 21, 16)
    whole = vae.encode(mel)
    for frames in (1, 5, 9, 13):
        part = vae.encode(mel[:, :, :frames])
        torch.testing.assert_close(part, whole[:, :, : part.shape[2]])


@torch.no_grad()
def test_decoding_the_beginning_gives_the_beginning_of_the_mel() -> None:
    vae, latents = tiny(), torch.randn(1, 3, 6, 4)
    whole = vae.decode(latents)
    part = vae.decode(latents[:, :, :4])
    torch.testing.assert_close(part, whole[:, :, :13])


@torch.no_grad()
def test_encode_is_the_normalised_posterior_mean() -> None:
    vae, mel = tiny(), torch.randn(2, 2, 9, 16)
    mean, log_variance = vae.encode_posterior(mel)
    assert mean.shape == log_variance.shape == (2, 3, 3, 4)
    statistics = vae.per_channel_statistics
    grid = (
        statistics.get_buffer("mean-of-means").view(3, 1, 4),
        statistics.get_buffer("std-of-means").view(3, 1, 4),
    )
    torch.testing.assert_close(vae.encode(mel), (mean - grid[0]) / grid[1])
    torch.testing.assert_close(statistics.denormalise(vae.encode(mel)), mean, atol=1e-5, rtol=1e-5)


def test_measured_statistics_normalise_what_they_were_measured_on() -> None:
    vae = tiny()
    latents = 5 + 3 * torch.randn(4, 3, 50, 4)
    vae.per_channel_statistics.measure(latents)
    normalised = vae.per_channel_statistics.normalise(latents)
    torch.testing.assert_close(normalised.mean((0, 2)), torch.zeros(3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2), unbiased=False), torch.ones(3, 4), atol=1e-2, rtol=0)


def test_statistics_are_unknown_until_a_file_or_a_measurement_supplies_them() -> None:
    vae = AudioVAE(TINY)
    assert vae.encode(torch.randn(1, 2, 5, 16)).isnan().all()


@torch.no_grad()
def test_half_precision_weights_compute_in_their_type_and_answer_in_the_input_s() -> None:
    vae, mel = tiny(), torch.randn(1, 2, 9, 16)
    exact = vae.encode(mel)
    half = vae.bfloat16()
    latents = half.encode(mel)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, exact, atol=0.1, rtol=0.1)
    assert half.decode(latents.bfloat16()).dtype == torch.bfloat16


def test_either_half_can_be_left_out() -> None:
    decoder_only, encoder_only = tiny(encoder=False), tiny(decoder=False)
    assert not [key for key in decoder_only.state_dict() if key.startswith("encoder.")]
    assert decoder_only.decode(torch.randn(1, 3, 2, 4)).shape == (1, 2, 5, 16)
    with pytest.raises(RuntimeError, match="without its encoder"):
        decoder_only.encode(torch.randn(1, 2, 5, 16))
    with pytest.raises(RuntimeError, match="without its decoder"):
        encoder_only.decode(torch.randn(1, 3, 2, 4))


def test_built_on_meta_and_filled_it_equals_the_original() -> None:
    vae, mel = tiny(), torch.randn(1, 2, 5, 16)
    with torch.device("meta"):
        copy = AudioVAE(TINY)
    copy.load_state_dict(vae.state_dict(), assign=True)
    assert torch.equal(copy.encode(mel), vae.encode(mel))


def test_training_brings_the_reconstruction_error_down() -> None:
    vae, mel = tiny().train(), torch.randn(2, 2, 5, 16)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        mean, _ = vae.encode_posterior(mel)
        loss = (vae.decode(vae.per_channel_statistics.normalise(mean)) - mel).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_geometry_follows_from_the_levels_and_the_front_end() -> None:
    geometry = TINY.geometry(48_000)
    assert (geometry.downsample_factor, geometry.latent_bins, geometry.channels) == (4, 4, 3)
    assert (geometry.hop_length, geometry.output_sample_rate) == (160, 48_000)
    two_levels = dataclasses.replace(TINY, ch_mult=(1, 1))
    assert two_levels.geometry().latents_per_second == 50
    assert two_levels.latent_bins == 8


@pytest.mark.parametrize("config", [TINY, AudioVAEConfig.from_header({})])
def test_a_header_survives_being_written_and_read(config: AudioVAEConfig) -> None:
    assert AudioVAEConfig.from_header(config.to_header()) == config


def test_an_empty_header_means_the_released_network() -> None:
    config = AudioVAEConfig.from_header({})
    assert (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels) == (128, (1, 2, 4), 2, 8)
    assert config.geometry().token_channels == 128


def test_keys_of_other_programs_are_ignored() -> None:
    section = AudioVAEConfig.from_header({}).to_header()
    section["model"]["params"]["embed_dim"] = 8
    section["preprocessing"]["audio"]["duration"] = 5.12
    section["note"] = "hello"
    assert AudioVAEConfig.from_header(section) == AudioVAEConfig.from_header({})


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"attn_resolutions": [8]}, "attn_resolutions"),
        ({"mid_block_add_attention": True}, "mid_block_add_attention"),
        ({"norm_type": "group"}, "norm_type='group' is not supported; released files have 'pixel'"),
        ({"causality_axis": "width"}, "causality_axis"),
        ({"double_z": False}, "double_z"),
        ({"ch": 0}, "ch=0 is not positive"),
        ({"ch_mult": []}, "ch_mult"),
        ({"mel_bins": 66}, "mel_bins=66 is not a multiple of 4"),
    ],
)
def test_other_kinds_of_network_are_refused_by_name(network: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AudioVAEConfig.from_header({"model": {"params": {"ddconfig": network}}})


def test_contradictions_within_the_header_are_refused() -> None:
    section = AudioVAEConfig.from_header({}).to_header()
    section["preprocessing"]["mel"]["n_mel_channels"] = 80
    with pytest.raises(ConfigError, match="mel_bins=64 of the network differs from n_mel_channels=80"):
        AudioVAEConfig.from_header(section)
    with pytest.raises(ConfigError, match=r"stft\.causal=false"):
        AudioVAEConfig.from_header({"preprocessing": {"stft": {"causal": False}}})
