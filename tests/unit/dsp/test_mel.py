"""The audio front-end: known values, shapes, scales and bad input."""

import math

import pytest
import torch
from torch import Tensor

from soundstage.core.errors import ConfigError, RequestError
from soundstage.dsp.mel import MelConfig, hz_to_mel, log_mel, mel_filterbank, mel_to_hz
from soundstage.dsp.stft import magnitude

SMALL = MelConfig(n_fft=256, win_length=256, hop_length=64, num_mels=16)


def tones(**amplitudes: float) -> Tensor:
    time = torch.arange(16_000) / 16_000
    wave = sum(a * torch.sin(2 * math.pi * int(f[1:]) * time) for f, a in amplitudes.items())
    return wave.expand(1, 2, -1)


def test_frames_are_one_more_than_whole_hops() -> None:
    for samples in (513, 640, 799, 800, 3200):
        mel = log_mel(torch.zeros(1, 2, samples), MelConfig())
        assert mel.shape == (1, 2, MelConfig().num_frames(samples), 64)
        assert mel.shape[2] == 1 + samples // 160


def test_silence_is_the_logarithm_of_the_floor() -> None:
    assert torch.equal(log_mel(torch.zeros(1, 1, 800), MelConfig()), torch.full((1, 1, 6, 64), 1e-5).log())


def test_a_louder_tone_is_higher_by_the_logarithm_of_its_gain() -> None:
    quiet, loud = (log_mel(tones(f1000=a), MelConfig())[0, 0, 50, 20] for a in (0.1, 0.4))
    assert (loud - quiet).item() == pytest.approx(math.log(4), abs=1e-4)


def test_filters_have_unit_area_and_known_peaks() -> None:
    bank = mel_filterbank(MelConfig())
    assert bank.sum().item() == pytest.approx(4.09588, abs=1e-5)
    assert bank[:, 0].argmax().item() == 3
    assert bank[:, 0].max().item() == pytest.approx(0.0213312, abs=1e-7)
    assert bank[:, 63].argmax().item() == 488
    assert bank[:, 63].max().item() == pytest.approx(0.00273, abs=1e-5)


@pytest.mark.parametrize("frequency", [0.0, 500.0, 999.9, 1000.0, 4321.0, 8000.0])
def test_mel_scale_is_invertible(frequency: float) -> None:
    assert mel_to_hz(hz_to_mel(frequency)) == pytest.approx(frequency)


def test_mel_scale_is_linear_below_1_khz_and_logarithmic_above() -> None:
    assert hz_to_mel(200.0) == pytest.approx(3)
    assert hz_to_mel(1000.0) == pytest.approx(15)
    assert hz_to_mel(6400.0) - hz_to_mel(1000.0) == pytest.approx(27)


def test_gradients_are_finite_in_silence_and_sound() -> None:
    for waveform in (torch.zeros(1, 2, 800), torch.randn(1, 2, 800)):
        waveform.requires_grad_()
        log_mel(waveform, SMALL).sum().backward()
        assert waveform.grad.isfinite().all()


def test_half_precision_is_raised_and_double_kept() -> None:
    wave = torch.randn(1, 1, 800)
    assert log_mel(wave.bfloat16(), SMALL).dtype == torch.float32
    double = log_mel(wave.double(), SMALL)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), log_mel(wave, SMALL), atol=1e-4, rtol=1e-4)


def test_tables_first_made_under_inference_mode_serve_training() -> None:
    config = MelConfig(n_fft=200, win_length=120, hop_length=50, num_mels=7)
    with torch.inference_mode():
        log_mel(torch.zeros(1, 1, 400), config)
    waveform = torch.randn(1, 1, 400, requires_grad=True)
    log_mel(waveform, config).sum().backward()
    assert waveform.grad is not None


def test_a_short_window_is_centred_in_its_frame() -> None:
    impulse = torch.zeros(1, 1, 401)
    impulse[..., 200] = 1
    frames = magnitude(impulse, n_fft=64, hop_length=8, win_length=32)[0, 0].sum(0)
    assert frames.argmax().item() == 25  # 200 / 8


def test_a_waveform_shorter_than_half_a_window_is_refused() -> None:
    with pytest.raises(RequestError, match="512 samples; at least 513"):
        log_mel(torch.zeros(1, 2, 512), MelConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_mels": 0}, "num_mels=0 is not positive"),
        ({"win_length": 2048}, "exceeds n_fft=1024"),
        ({"f_max": 9000.0}, "0 .. 8000"),
        ({"f_min": 8000.0}, "do not lie in order"),
    ],
)
def test_impossible_front_ends_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MelConfig(**change)
