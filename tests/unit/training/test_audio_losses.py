"""Losses between sounds order them as an ear would, and their gradients exist everywhere."""

import math

import pytest
import torch
from torch import Tensor

from soundstage.training.audio_losses import (
    mel_scales,
    multi_resolution_stft_loss,
    multi_scale_mel_loss,
    with_mid_side,
)

RATE = 24_000


def tone(frequency: float, *, left: float = 0.5, right: float = 0.5, samples: int = 2400) -> Tensor:
    wave = torch.sin(2 * math.pi * frequency * torch.arange(samples) / RATE)
    return torch.stack((left * wave, right * wave))[None]


def stft_loss(predicted: Tensor, target: Tensor) -> Tensor:
    return multi_resolution_stft_loss(predicted, target)


def mel_loss(predicted: Tensor, target: Tensor) -> Tensor:
    return multi_scale_mel_loss(predicted, target, mel_scales(RATE))


LOSSES = pytest.mark.parametrize("loss", [stft_loss, mel_loss])


@LOSSES
def test_equal_sounds_have_no_loss(loss) -> None:
    assert loss(tone(440), tone(440)).item() == pytest.approx(0, abs=1e-6)


@LOSSES
def test_a_wrong_pitch_costs_more_than_a_small_change_of_loudness(loss) -> None:
    quieter = loss(tone(440, left=0.45, right=0.45), tone(440))
    assert 0 < quieter < loss(tone(880), tone(440))


@LOSSES
def test_swapped_phase_between_channels_is_heard_through_mid_and_side(loss) -> None:
    assert loss(tone(440, right=-0.5), tone(440)) > 0.1


@LOSSES
def test_silence_has_finite_gradients(loss) -> None:
    predicted = torch.zeros(1, 2, 2400, requires_grad=True)
    loss(predicted, tone(440)).backward()
    assert predicted.grad.isfinite().all()
    loss(predicted, torch.zeros(1, 2, 2400)).backward()
    assert predicted.grad.isfinite().all()


@LOSSES
@pytest.mark.parametrize(("gain", "direction"), [(0.1, 1), (1.5, -1)])
def test_the_gradient_leads_to_the_right_loudness(loss, gain: float, direction: int) -> None:
    at = torch.tensor(gain, requires_grad=True)
    loss(at * tone(440, left=1, right=1), tone(440)).backward()
    assert -at.grad.sign().item() == direction


def test_no_mel_bin_is_empty() -> None:
    from soundstage.dsp.mel import mel_filterbank

    for scale in mel_scales(RATE):
        assert (mel_filterbank(scale).sum(0) > 0).all()


def test_mid_is_the_mean_and_side_half_the_difference() -> None:
    stereo = torch.tensor([[[1.0], [0.5]]])
    assert with_mid_side(stereo).flatten().tolist() == [1.0, 0.5, 0.75, 0.25]
    mono = stereo[:, :1]
    assert with_mid_side(mono) is mono
