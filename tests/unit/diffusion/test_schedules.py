"""Noise schedules."""

import pytest
import torch

from soundstage.core.errors import RequestError
from soundstage.diffusion.schedules import (
    FIXED_STEPS,
    SCHEDULES,
    beta,
    explicit,
    make_sigmas,
    refine,
    shift_for_tokens,
    shifted,
)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 30])
def test_every_schedule_falls_to_zero_with_one_level_more_than_steps(name: str, num_steps: int) -> None:
    sigmas = make_sigmas(name, FIXED_STEPS.get(name, num_steps))
    assert sigmas.dtype == torch.float32
    assert sigmas[-1] == 0
    assert sigmas[0] <= 1
    assert (sigmas.diff() < 0).all()
    assert len(sigmas) == FIXED_STEPS.get(name, num_steps) + 1


def test_published_values_of_the_default_schedule() -> None:
    expected = torch.tensor([1, 0.965712, 0.921875, 0.863856, 0.783445, 0.664579, 0.471003, 0.1, 0])
    torch.testing.assert_close(make_sigmas("shifted", 8), expected, atol=1e-6, rtol=0)


def test_shift_follows_the_token_count_and_is_not_clamped() -> None:
    assert shift_for_tokens(1024) == pytest.approx(0.95)
    assert shift_for_tokens(4096) == pytest.approx(2.05)
    assert shift_for_tokens(32_640) == pytest.approx(12.271, abs=1e-3)
    by_tokens = make_sigmas("shifted", 15, shift="tokens", num_tokens=8160)
    assert by_tokens[1].item() == pytest.approx(0.993491, abs=1e-6)
    assert torch.equal(by_tokens, make_sigmas("shifted", 15, shift=shift_for_tokens(8160)))


def test_terminal_is_the_last_level_before_zero_whatever_the_shift() -> None:
    for shift in (0.0, 2.05, 6.0):
        assert shifted(12, shift=shift)[-2].item() == pytest.approx(0.1, abs=1e-6)
    assert shifted(12, terminal=0.02)[-2].item() == pytest.approx(0.02, abs=1e-6)


def test_shift_zero_without_terminal_is_even() -> None:
    torch.testing.assert_close(shifted(4, shift=0.0, terminal=None), torch.tensor([1, 0.75, 0.5, 0.25, 0]))


def test_beta_drops_repeated_levels() -> None:
    assert len(beta(64, resolution=20)) < 64
    assert (beta(64, resolution=20).diff() < 0).all()


def test_refine_is_the_tail_of_distilled() -> None:
    assert torch.equal(refine(), make_sigmas("distilled", 8)[-4:])


def test_fixed_list_with_another_step_count_names_the_right_one() -> None:
    with pytest.raises(RequestError, match="num_inference_steps=4: schedule 'distilled' always has 8"):
        make_sigmas("distilled", 4)


def test_no_steps_is_an_error() -> None:
    with pytest.raises(RequestError, match="num_inference_steps=0 is not positive"):
        make_sigmas("shifted", 0)


def test_tokens_shift_without_tokens_is_an_error() -> None:
    with pytest.raises(RequestError, match="needs a clip with video tokens"):
        make_sigmas("shifted", 4, shift="tokens")


def test_explicit_levels_are_taken_as_they_are() -> None:
    assert explicit((0.9, 0.5, 0.0)).tolist() == pytest.approx([0.9, 0.5, 0.0])


@pytest.mark.parametrize("levels", [(1.0,), (1.2, 0.0), (1.0, 0.5), (0.5, 0.7, 0.0), (1.0, 1.0, 0.0), ()])
def test_explicit_levels_that_do_not_fall_to_zero_are_an_error(levels: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match="must fall strictly from at most 1 to 0"):
        explicit(levels)
