"""The vocoders: lengths, precision, anti-aliasing, training and what their headers say."""

import math

import pytest
import torch
from torch import Tensor

from soundstage.core.errors import ConfigError
from soundstage.dsp.mel import MelConfig, log_mel, mel_filterbank
from soundstage.models.vocoder.antialias import AntiAliasedActivation, SnakeBeta, low_pass_filter
from soundstage.models.vocoder.bandwidth_extension import (
    BandwidthExtensionVocoder,
    CausalLogMel,
    fourier_basis,
    interpolate,
)
from soundstage.models.vocoder.bigvgan import AMPGenerator
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.hifigan import HiFiGANVocoder
from soundstage.models.vocoder.model import build_vocoder

HIFIGAN = {
    "upsample_initial_channel": 16,
    "upsample_rates": [6, 5, 4, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
    "resblock": "1",
    "stereo": True,
    "num_mels": 8,
}
AMP = {
    **HIFIGAN,
    "upsample_initial_channel": 8,
    "upsample_rates": [10, 16],
    "upsample_kernel_sizes": [20, 32],
    "resblock": "AMP1",
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}
BWE = {
    **AMP,
    "upsample_rates": [15, 16],
    "upsample_kernel_sizes": [15, 16],
    "apply_final_activation": False,
    "input_sampling_rate": 16_000,
    "output_sampling_rate": 48_000,
    "hop_length": 80,
    "n_fft": 128,
    "win_size": 128,
}
HEADERS = {"2.0": HIFIGAN, "2.3": {"vocoder": AMP, "bwe": BWE}}
GENERATIONS = pytest.mark.parametrize("generation", HEADERS)


def build(generation: str) -> HiFiGANVocoder | BandwidthExtensionVocoder:
    torch.manual_seed(0)
    return build_vocoder(VocoderConfig.from_header(HEADERS[generation])).eval()


def tone(frequency: float, rate: int, samples: int) -> Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(samples) / rate)[None, None]


def test_the_header_chooses_the_vocoder() -> None:
    assert isinstance(build("2.0"), HiFiGANVocoder)
    assert isinstance(build("2.3"), BandwidthExtensionVocoder)


@GENERATIONS
@pytest.mark.parametrize("frames", [1, 5])
@torch.no_grad()
def test_every_mel_frame_gives_its_share_of_samples(generation: str, frames: int) -> None:
    vocoder = build(generation)
    waveform = vocoder(torch.randn(2, 2, frames, 8))
    per_frame = vocoder.config.samples_per_mel_frame
    assert waveform.shape == (2, 2, per_frame * frames)
    assert per_frame == {"2.0": 240, "2.3": 480}[generation]
    assert vocoder.sample_rate == 100 * per_frame
    assert waveform.abs().max() <= 1


@GENERATIONS
@torch.no_grad()
def test_half_precision_weights_are_raised_not_the_module(generation: str) -> None:
    mel = torch.randn(1, 2, 4, 8)
    half = build(generation).bfloat16()
    raised = build(generation)
    raised.load_state_dict({key: tensor.float() for key, tensor in half.state_dict().items()})
    expected = raised(mel)
    for given in (mel, mel.to(torch.bfloat16).float()):
        torch.testing.assert_close(half(given), raised(given), atol=0, rtol=0)
    assert half(mel.bfloat16()).dtype == expected.dtype == torch.float32
    assert {t.dtype for t in half.state_dict().values()} == {torch.bfloat16}


@GENERATIONS
@torch.no_grad()
def test_built_on_meta_and_filled_it_equals_the_original(generation: str) -> None:
    vocoder, mel = build(generation), torch.randn(1, 2, 3, 8)
    with torch.device("meta"):
        copy = build_vocoder(vocoder.config)
    assert all(tensor.is_meta for tensor in copy.state_dict().values())
    copy.load_state_dict(vocoder.state_dict(), assign=True)
    assert torch.equal(copy(mel), vocoder(mel))


@GENERATIONS
@torch.no_grad()
def test_left_and_right_are_stacked_left_first(generation: str) -> None:
    vocoder, mel = build(generation), torch.randn(1, 2, 3, 8)
    first = vocoder.conv_pre if generation == "2.0" else vocoder.vocoder.conv_pre
    first.weight[:, 8:] = 0  # deaf on the right
    changed = mel.clone()
    changed[:, 1] += 1
    assert torch.equal(vocoder(changed), vocoder(mel))
    changed[:, 0] += 1
    assert not torch.equal(vocoder(changed), vocoder(mel))


@GENERATIONS
def test_training_from_scratch_has_signal_and_gradients_everywhere(generation: str) -> None:
    vocoder = build(generation).train()
    waveform = vocoder(torch.randn(1, 2, 4, 8))
    assert 1e-3 < waveform.std().item() < 1
    waveform.square().mean().backward()
    silent = [name for name, p in vocoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_training_brings_the_error_down() -> None:
    vocoder = build("2.0").train()
    target = 0.5 * tone(440, 24_000, 960).expand(1, 2, -1)
    mel = torch.randn(1, 2, 4, 8)
    optimizer = torch.optim.Adam(vocoder.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (vocoder(mel) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_filter_has_the_published_taps() -> None:
    half = [0.00202896, 0.00938947, -0.02554346, -0.05765738, 0.12857258, 0.44320980]
    assert low_pass_filter().flatten().tolist() == pytest.approx([*half, *half[::-1]], abs=1e-7)


def test_filters_are_stored_and_those_of_the_file_are_used() -> None:
    activation = AntiAliasedActivation(2)
    keys = {"act.alpha", "act.beta", "upsample.filter", "downsample.lowpass.filter"}
    assert set(activation.state_dict()) == keys
    x = torch.randn(1, 2, 20)
    before = activation(x)
    activation.get_buffer("upsample.filter").mul_(0.5)
    assert not torch.equal(activation(x), before)


@torch.no_grad()
def test_an_activation_with_a_huge_b_passes_low_tones_unchanged() -> None:
    activation = AntiAliasedActivation(1)
    activation.act.beta.fill_(20)  # no ripple: only the filters remain
    x = tone(1, 20, 200)
    torch.testing.assert_close(activation(x)[..., 20:-20], x[..., 20:-20], atol=5e-3, rtol=0)


@torch.no_grad()
def test_overtones_above_the_limit_do_not_fold_back() -> None:
    """The ripple of a tone at 0.35 of the rate lies at 0.7, which would come back as 0.3."""
    x = tone(7, 20, 1100)
    plain, protected = SnakeBeta(1), AntiAliasedActivation(1)

    def wrong_tone(y: Tensor) -> float:
        inside = y[0, 0, 50:-50]
        return torch.fft.rfft(inside)[300].abs().item() / len(inside)

    assert wrong_tone(plain(x)) > 0.1
    assert wrong_tone(protected(x)) < 0.3 * wrong_tone(plain(x))  # twelve taps are a gentle slope


def test_snake_adds_a_ripple_of_the_given_size_and_frequency() -> None:
    snake = SnakeBeta(1)
    with torch.no_grad():
        snake.alpha.fill_(math.log(2))
        snake.beta.fill_(math.log(4))
    x = torch.tensor([[[0.7]]])
    assert snake(x).item() == pytest.approx(0.7 + math.sin(1.4) ** 2 / 4)


@torch.no_grad()
def test_the_causal_mel_ends_each_frame_with_its_hop() -> None:
    mel = CausalLogMel(VocoderConfig.from_header(HEADERS["2.3"]).bandwidth_extension)
    waveform = torch.randn(1, 2, 400)
    whole = mel(waveform)
    assert whole.shape == (1, 2, 5, 8)
    torch.testing.assert_close(mel(waveform[..., :240]), whole[:, :, :3], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fresh_bases_equal_the_front_end_away_from_the_ends() -> None:
    mel = CausalLogMel(VocoderConfig.from_header(HEADERS["2.3"]).bandwidth_extension)
    waveform = torch.randn(1, 1, 800)
    config = MelConfig(n_fft=128, win_length=128, hop_length=80, num_mels=8)
    centred = log_mel(waveform[..., 16:], config)  # frame k ends at sample 80 k + 80
    torch.testing.assert_close(mel(waveform)[:, :, 1:9], centred[:, :, 1:9], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mel.get_buffer("mel_basis"), mel_filterbank(config).mT.float())


def test_the_fourier_basis_finds_a_tone_in_its_bin() -> None:
    basis = fourier_basis(64, 64)[:, 0]
    wave = torch.cos(2 * math.pi * 5 / 64 * torch.arange(64, dtype=torch.float64))
    real, imaginary = (basis @ wave).chunk(2)
    assert torch.hypot(real, imaginary).argmax().item() == 5
    assert basis.shape == (66, 64)


@torch.no_grad()
def test_interpolation_keeps_a_tone() -> None:
    y = interpolate(tone(1000, 16_000, 400), 3)
    assert y.shape == (1, 1, 1200)
    expected = tone(1000, 48_000, 1200)
    torch.testing.assert_close(y[..., 60:-60], expected[..., 60:-60], atol=2e-3, rtol=0)


@torch.no_grad()
def test_extension_of_any_length_is_three_times_as_long() -> None:
    vocoder = build("2.3")
    for samples in (80, 100, 161):
        assert vocoder.extend(torch.randn(1, 2, samples)).shape == (1, 2, 3 * samples)


@torch.no_grad()
def test_the_first_stage_is_clamped_before_it_is_extended() -> None:
    vocoder = build("2.3")
    vocoder.vocoder.conv_post.weight.mul_(1000)
    waveform = vocoder.vocoder(torch.randn(1, 2, 4, 8))
    assert waveform.abs().max() == 1


def test_mono_generators_have_half_the_inputs() -> None:
    config = VocoderConfig.from_header({**HIFIGAN, "stereo": False})
    assert build_vocoder(config)(torch.randn(1, 1, 2, 8)).shape == (1, 1, 480)


@GENERATIONS
def test_a_header_survives_being_written_and_read(generation: str) -> None:
    config = VocoderConfig.from_header(HEADERS[generation])
    assert VocoderConfig.from_header(config.to_header()) == config


def test_unknown_keys_of_a_header_are_ignored() -> None:
    assert VocoderConfig.from_header({**HIFIGAN, "note": 1}) == VocoderConfig.from_header(HIFIGAN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_kernel_sizes": [16, 15]}, "4 upsample_rates need as many upsample_kernel_sizes, not 2"),
        (
            {"upsample_kernel_sizes": [15, 15, 8, 4]},
            "upsampling by 6 needs a kernel of 6 plus an even number",
        ),
        ({"upsample_initial_channel": 24}, "not a multiple of 16, which 4 stages need"),
        ({"resblock": "2"}, "resblock='2' is not one of"),
        ({"activation": "snake"}, "activation='snake' is not one of 'snakebeta'"),
        ({"resblock_kernel_sizes": [3, 4]}, "must be odd"),
        ({"resblock_kernel_sizes": [3]}, "differ in length"),
        ({"upsample_rates": "6"}, "should be a list"),
    ],
)
def test_impossible_generators_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VocoderConfig.from_header({**HIFIGAN, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_sampling_rate": 44_100}, "not a multiple of input_sampling_rate=16000"),
        ({"hop_length": 40}, "makes 240 samples of a spectrum"),
        ({"win_size": 256}, "must not decrease"),
        ({"stereo": False}, "both generators must be stereo"),
    ],
)
def test_impossible_extensions_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VocoderConfig.from_header({"vocoder": AMP, "bwe": {**BWE, **change}})


def test_a_missing_width_is_named() -> None:
    section = {key: value for key, value in HIFIGAN.items() if key != "upsample_rates"}
    with pytest.raises(ConfigError, match="missing key 'upsample_rates'"):
        VocoderConfig.from_header(section)


def test_the_anti_aliased_generator_alone_makes_the_lower_rate() -> None:
    generator = AMPGenerator(VocoderConfig.from_header(HEADERS["2.3"]).generator)
    assert generator(torch.randn(1, 2, 3, 8)).shape == (1, 2, 480)
