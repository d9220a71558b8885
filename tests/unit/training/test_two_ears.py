"""Two copies of one ear's vocoder are a stereo vocoder, weight for weight."""

import pytest
import torch

from soundstage.core.errors import CheckpointError, ConfigError
from soundstage.models.vocoder.config import GeneratorConfig, VocoderConfig
from soundstage.models.vocoder.hifigan import HiFiGANVocoder
from soundstage.training.two_ears import TwoEars


def config(stereo: bool = True) -> VocoderConfig:
    generator = GeneratorConfig(
        upsample_initial_channel=16,
        upsample_rates=(6, 5, 2),
        upsample_kernel_sizes=(16, 15, 8),
        resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 3), (1, 3)),
        stereo=stereo,
    )
    return VocoderConfig(generator=generator)


def test_the_stereo_vocoder_made_of_two_copies_computes_the_same():
    torch.manual_seed(0)
    ears, stereo = TwoEars(config()), HiFiGANVocoder(config())
    for parameter in ears.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    stereo.load_state_dict(ears.stereo_state_dict())
    mel = torch.randn(3, 2, 9, 64)
    torch.testing.assert_close(stereo(mel), ears(mel), atol=1e-5, rtol=1e-5)


def test_each_ear_hears_only_its_own_spectrogram():
    torch.manual_seed(0)
    ears, mel = TwoEars(config()), torch.randn(1, 2, 9, 64)
    other = mel.clone()
    other[:, 1] += 1
    assert torch.equal(ears(mel)[:, 0], ears(other)[:, 0])
    assert not torch.equal(ears(mel)[:, 1], ears(other)[:, 1])


def test_a_mono_vocoder_is_refused():
    with pytest.raises(ConfigError, match="one_ear"):
        TwoEars(config(stereo=False))


def test_an_ear_comes_back_from_the_stereo_vocoder_it_made():
    torch.manual_seed(0)
    ears, others = TwoEars(config()), TwoEars(config())
    others.load_stereo({f"vocoder.{name}": t for name, t in ears.stereo_state_dict().items()}, "vocoder.")
    mel = torch.randn(1, 2, 9, 64)
    assert torch.equal(ears(mel), others(mel))


def test_ears_that_differ_are_not_mistaken_for_one():
    weights = TwoEars(config()).stereo_state_dict()
    name = next(name for name, tensor in weights.items() if tensor.ndim > 1)
    weights[name][-1] += 1
    with pytest.raises(CheckpointError, match="not the same for both ears"):
        TwoEars(config()).load_stereo(weights)
