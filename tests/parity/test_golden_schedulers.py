"""Schedules and sampler steps against the recorded reference values."""

import pytest
import torch

from golden_cases import cases, load_case
from soundstage.diffusion import samplers, schedules


@pytest.mark.parametrize("case_id", [i for i in cases("scheduler") if i.startswith("scheduler.ltx2.")])
def test_shifted_schedule_equals_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    terminal = case.params["terminal"] if case.params["stretch"] else None
    for num_steps in case.params["steps"]:
        shift = schedules.shift_for_tokens(case.params["tokens"])
        case.check(f"sigmas_{num_steps}", schedules.shifted(num_steps, shift=shift, terminal=terminal))


def test_official_shift_is_the_default_of_the_reference() -> None:
    case = load_case("scheduler.ltx2.tokens_default")
    for num_steps in case.params["steps"]:
        case.check(f"sigmas_{num_steps}", schedules.make_sigmas("shifted", num_steps, shift="official"))


@pytest.mark.parametrize("name", ["linear_quadratic", "beta"])
def test_other_schedules_equal_the_reference(name: str) -> None:
    case = load_case(f"scheduler.{name}")
    for num_steps in case.params["steps"]:
        case.check(f"sigmas_{num_steps}", schedules.make_sigmas(name, num_steps))


def test_fixed_lists_equal_the_reference() -> None:
    case = load_case("scheduler.distilled")
    case.check("stage_1", schedules.distilled())
    case.check("stage_2", schedules.refine())


@pytest.mark.parametrize("case_id", [i for i in cases("scheduler") if i.startswith("step.euler.")])
def test_euler_step_equals_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    sigma, sigma_next = case.inputs["sigmas"][case.params["step_index"] :][:2].tolist()
    got = samplers.euler_step(
        case.inputs["sample"], case.inputs["denoised"], sigma=sigma, sigma_next=sigma_next
    )
    case.check("next", got)


@pytest.mark.parametrize("case_id", [i for i in cases("scheduler") if i.startswith("step.res2s_sde.")])
def test_stochastic_step_of_res_2s_equals_the_reference(case_id: str) -> None:
    case = load_case(case_id)
    sigma, sigma_next = case.inputs["sigmas"][case.params["step_index"] :][:2].tolist()
    got = samplers.sde_step(
        case.inputs["sample"].double(),
        case.inputs["denoised"].double(),
        case.inputs["noise"].double(),
        sigma=sigma,
        sigma_next=sigma_next,
        eta=0.5,
    )
    case.check("next", got)


def test_coefficients_of_res_2s_equal_the_reference() -> None:
    case = load_case("step.res2s_coefficients")
    rows = [samplers.res_2s_coefficients(h) for h in case.inputs["h"].tolist()]
    case.check("coefficients", torch.tensor(rows, dtype=torch.float64))
