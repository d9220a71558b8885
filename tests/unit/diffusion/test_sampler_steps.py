"""Single steps and coefficients of the samplers."""

import math

import pytest
import torch

from soundstage.diffusion import samplers
from soundstage.diffusion.schedules import distilled


def one(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1), value, dtype=torch.float64)


def test_euler_step_value() -> None:
    got = samplers.euler_step(one(1.0), one(0.2), sigma=0.909375, sigma_next=0.725)
    assert got.item() == pytest.approx(0.8378, abs=1e-4)


def test_euler_step_to_zero_returns_the_denoised_bits() -> None:
    noisy, denoised = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(samplers.euler_step(noisy, denoised, sigma=0.1, sigma_next=0.0), denoised)


def test_ancestral_step_value() -> None:
    got = samplers.ancestral_step(one(1.0), one(0.2), one(0.5), sigma=0.909375, sigma_next=0.725, eta=1.0)
    assert got.item() == pytest.approx(0.7714, abs=1e-4)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, (0.987539, 0.501567, 0.861510)), (4, (0.848167, 0.596873, 0.755431))]
)
def test_ancestral_coefficients_on_the_distilled_levels(step: int, expected: tuple[float, ...]) -> None:
    sigma, sigma_next = distilled()[step : step + 2].tolist()
    assert samplers.ancestral_coefficients(sigma, sigma_next, 1.0) == pytest.approx(expected, abs=2e-6)


def test_ancestral_step_without_eta_is_euler() -> None:
    noisy, denoised = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    got = samplers.ancestral_step(
        noisy, denoised, torch.full((2, 3, 4), 9.0), sigma=0.9, sigma_next=0.6, eta=0.0
    )
    torch.testing.assert_close(got, samplers.euler_step(noisy, denoised, sigma=0.9, sigma_next=0.6))


@pytest.mark.parametrize(
    ("h", "expected"),
    [
        (0.5, (0.442398, -0.065307, 0.852245)),
        (1.0, (0.393469, -0.103638, 0.735759)),
        (math.log(0.909375 / 0.725), (0.4727167, -0.0337626, 0.9285630)),
    ],
)
def test_res_2s_coefficients(h: float, expected: tuple[float, ...]) -> None:
    assert samplers.res_2s_coefficients(h) == pytest.approx(expected, abs=1e-6)


def test_res_2s_coefficients_have_no_cancellation_at_tiny_steps() -> None:
    assert samplers.res_2s_coefficients(1e-6) == pytest.approx((0.5, 0.0, 1.0), abs=1e-3)


def test_sde_step_keeps_the_variance_of_the_level() -> None:
    """Pure noise in, at the level's amount, comes out at the level's amount."""
    generator = torch.Generator().manual_seed(0)
    noise, fresh = torch.randn(2, 1, 4000, 8, generator=generator, dtype=torch.float64)
    sigma, sigma_next = 0.8, 0.5
    got = samplers.sde_step(
        sigma * noise, sigma_next * noise, fresh, sigma=sigma, sigma_next=sigma_next, eta=0.5
    )
    assert got.std().item() == pytest.approx(sigma_next, rel=0.02)


@pytest.mark.parametrize(("eta", "sigma_next"), [(0.0, 0.5), (0.5, 0.0)])
def test_sde_step_without_room_for_noise_changes_nothing(eta: float, sigma_next: float) -> None:
    start, end, noise = torch.randn(3, 1, 2, 3)
    got = samplers.sde_step(start, end, noise, sigma=0.8, sigma_next=sigma_next, eta=eta)
    assert torch.equal(got, end)


def test_consistent_anchor_is_where_the_iteration_of_the_reference_ends() -> None:
    middle, denoised = torch.randn(2, 1, 4, 3, dtype=torch.float64)
    weight = 0.24
    anchor = middle
    for _ in range(100):
        anchor = middle - weight * (denoised - anchor)
    torch.testing.assert_close(samplers._consistent_anchor(middle, denoised, weight=weight), anchor)


@pytest.mark.parametrize("step", [None, 0.4])
def test_uni_pc_is_exact_where_what_is_denoised_changes_evenly_in_log_sigma(step: float | None) -> None:
    """The first step trusts the mean of its two ends, which is exact only in the limit of small steps."""
    h = 1e-3 if step is None else 0.7
    first, end = samplers.uni_pc_coefficients(h, step)
    # denoised(t) = t, t = -log sigma from 0: what the step to h heads for is this.
    towards = (h - 1 + math.exp(-h)) / (1 - math.exp(-h))
    assert first * -(step or 0.0) + end * h == pytest.approx(towards, rel=1e-3)


def test_uni_pc_is_exact_for_parabolas_after_its_first_step() -> None:
    h, step = 0.7, 0.4
    first, end = samplers.uni_pc_coefficients(h, step)
    # The same for denoised(t) = t^2: the integral of e^(t - h) t^2 from 0 to h.
    towards = (h**2 - 2 * h + 2 - 2 * math.exp(-h)) / (1 - math.exp(-h))
    assert first * step**2 + end * h**2 == pytest.approx(towards, rel=1e-9)
