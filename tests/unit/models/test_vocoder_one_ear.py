"""One ear's generator used for both: each hears its own spectrogram only."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from soundstage.core.errors import ConfigError
from soundstage.models.vocoder.config import GeneratorConfig, VocoderConfig
from soundstage.models.vocoder.hifigan import HiFiGANVocoder


def config(**changes) -> VocoderConfig:
    generator = GeneratorConfig(
        upsample_initial_channel=16,
        upsample_rates=(6, 5, 2),
        upsample_kernel_sizes=(16, 15, 8),
        resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 3), (1, 3)),
        one_ear=True,
    )
    return VocoderConfig(generator=replace(generator, **changes))


def loud(shape: VocoderConfig) -> HiFiGANVocoder:
    torch.manual_seed(0)
    vocoder = HiFiGANVocoder(shape)
    for parameter in vocoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vocoder


def _twice(tensor: Tensor) -> Tensor:
    """Repeat a bias; lay a kernel twice on the diagonal of one with twice the channels."""
    if tensor.ndim == 1:
        return tensor.repeat(2)
    return torch.stack([torch.block_diag(tap, tap) for tap in tensor.unbind(-1)], dim=-1)


def test_it_equals_a_stereo_generator_of_two_copies_that_do_not_know_each_other():
    ear = loud(config())
    stereo = HiFiGANVocoder(config(one_ear=False, upsample_initial_channel=32))
    stereo.load_state_dict({name: _twice(tensor) for name, tensor in ear.state_dict().items()})
    mel = torch.randn(3, 2, 9, 64)
    torch.testing.assert_close(ear(mel), stereo(mel), atol=1e-5, rtol=1e-5)


def test_each_ear_hears_only_its_own_spectrogram():
    vocoder, mel = loud(config()), torch.randn(1, 2, 9, 64)
    other = mel.clone()
    other[:, 1] += 1
    assert torch.equal(vocoder(mel)[:, 0], vocoder(other)[:, 0])
    assert not torch.equal(vocoder(mel)[:, 1], vocoder(other)[:, 1])


def test_the_header_says_so():
    assert VocoderConfig.from_header(config().to_header()) == config()
    assert not VocoderConfig.from_header({**config().to_header(), "one_ear": False}).generator.one_ear


def test_bandwidth_extension_with_one_ear_is_refused():
    extension = {
        **config(one_ear=False, upsample_rates=(6, 5, 4)).to_header(),
        "upsample_kernel_sizes": [16, 15, 8],
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 40,
        "n_fft": 64,
        "win_size": 64,
    }
    with pytest.raises(ConfigError, match="one_ear=true does not go with bandwidth extension"):
        VocoderConfig.from_header({"vocoder": config().to_header(), "bwe": extension})
