"""The critics of sound can be trained, and the games they play pull in the right directions."""

import math

import pytest
import torch

from soundstage.training.discriminators import (
    ADVERSARIAL_LOSSES,
    AudioCritics,
    Judgement,
    MelCritic,
    feature_matching_loss,
)


def judged(*scores: float) -> list[Judgement]:
    return [Judgement(torch.tensor([score]), ()) for score in scores]


def tones(batch: int, samples: int = 2048) -> torch.Tensor:
    frequency = torch.rand(batch, 1, 1) * 0.1 + 0.05
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(samples)).expand(-1, 2, -1)


@pytest.mark.parametrize("game", ADVERSARIAL_LOSSES)
def test_a_critic_prefers_high_scores_for_recorded_sound(game: str) -> None:
    critic, generator = ADVERSARIAL_LOSSES[game]
    assert critic(judged(1.0, 1.0), judged(0.0, 0.0)) < critic(judged(0.5, 0.5), judged(0.5, 0.5))
    assert critic(judged(0.5, 0.5), judged(0.5, 0.5)) < critic(judged(0.0, 0.0), judged(1.0, 1.0))
    assert generator(judged(1.0, 1.0)) < generator(judged(-1.0, -1.0))


def test_hinge_and_least_squares_values() -> None:
    assert ADVERSARIAL_LOSSES["hinge"].critic(judged(0.5), judged(-3.0)).item() == 0.5
    assert ADVERSARIAL_LOSSES["hinge"].generator(judged(0.5)).item() == -0.5
    assert ADVERSARIAL_LOSSES["least_squares"].critic(judged(0.5), judged(0.5)).item() == 0.5
    assert ADVERSARIAL_LOSSES["least_squares"].generator(judged(0.5)).item() == 0.25


def test_feature_matching_is_relative_and_moves_only_the_generated_side() -> None:
    real = [Judgement(torch.zeros(1), (torch.full((4,), 2.0, requires_grad=True),))]
    fake_features = torch.full((4,), 3.0, requires_grad=True)
    loss = feature_matching_loss(real, [Judgement(torch.zeros(1), (fake_features,))])
    assert loss.item() == 0.5
    loss.backward()
    assert fake_features.grad is not None
    assert real[0].features[0].grad is None


@pytest.mark.parametrize("samples", [1999, 2048])
def test_every_critic_judges_any_length(samples: int) -> None:
    critics = AudioCritics(width=4)
    judgements = critics(tones(2, samples))
    assert len(judgements) == len(critics.critics) == 8
    assert all(j.scores.shape[0] == 2 and j.scores.shape[1] == 1 for j in judgements)
    assert all(j.scores.isfinite().all() for j in judgements)


def test_critics_learn_to_tell_tones_from_noise() -> None:
    torch.manual_seed(0)
    critics = AudioCritics(width=4, periods=(2,), windows=(256,))
    optimizer = torch.optim.Adam(critics.parameters(), lr=2e-2)
    loss_of = ADVERSARIAL_LOSSES["hinge"].critic
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(critics(tones(4, 1024)), critics(0.3 * torch.randn(4, 2, 1024)))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7  # 2 = cannot tell


def test_the_generator_receives_gradients_from_every_critic() -> None:
    torch.manual_seed(0)
    for critic in AudioCritics(width=4).critics:
        waveform = tones(1).clone().requires_grad_()
        ADVERSARIAL_LOSSES["hinge"].generator([critic(waveform)]).backward()
        assert waveform.grad.abs().sum() > 0


def test_the_mel_critic_scores_patches() -> None:
    (judgement,) = MelCritic(width=4)(torch.randn(2, 2, 29, 64))
    assert judgement.scores.shape == (2, 1, 4, 8)
    assert len(judgement.features) == 3
