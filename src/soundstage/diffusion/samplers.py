"""Samplers: functions that run from noise to a sample, both streams in step.

Each takes a `SamplerTask` and the noisy start and returns clean latents. A sampler knows nothing of
networks, guidance or frozen streams: it sees a callable that returns denoised latents. Its state is its local
variables, in float32 (res_2s: float64), and a step is a pure function of one stream.

| name | order | noise | evaluations for n steps |
|---|---|---|---|
| `euler` | 1 | none | n |
| `euler_ancestral` | 1 | fresh at each step | n |
| `gradient_estimation` | 1, the error has the other sign | none | n |
| `dpmpp_2m` | 2, from the step before | none | n |
| `uni_pc` | 2, and each step mended by the next one's evaluation | none | n |
| `res_2s` | 2 | fresh, twice a step | 2 n + 1 |
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from soundstage.core.types import AV, Sigmas, Tokens
from soundstage.diffusion.flow import each_stream

Denoise = Callable[[AV[Tensor], float], AV[Tensor]]  # (noisy, sigma) -> denoised, kept tokens already clean
Keep = Callable[[AV[Tensor]], AV[Tensor]]  # puts the kept tokens back
DrawNoise = Callable[[AV[Tensor], str], AV[Tensor]]  # (like this, for what purpose) -> unit Gaussian noise

LAST_SIGMA = 0.0011  # where res_2s, which works in log sigma, ends instead of 0


@dataclass(frozen=True, kw_only=True)
class SamplerTask:
    """What a sampler walks along: the denoiser, the noise levels, and how to keep tokens and draw noise."""

    denoise: Denoise
    sigmas: Sigmas
    keep: Keep
    draw: DrawNoise


Sampler = Callable[[SamplerTask, AV[Tensor]], AV[Tensor]]


def euler(task: SamplerTask, noisy: AV[Tensor]) -> AV[Tensor]:
    """Follow the velocity in straight pieces: exact where the path is straight."""
    for sigma, sigma_next in _levels(task.sigmas):
        denoised = task.denoise(noisy, sigma)
        noisy = each_stream(euler_step, noisy, denoised, sigma=sigma, sigma_next=sigma_next)
    return noisy


def euler_ancestral(
    task: SamplerTask, noisy: AV[Tensor], *, eta: float = 1.0, s_noise: float = 1.0
) -> AV[Tensor]:
    """Step below the next level, then add fresh noise up to it; forgets the errors of earlier steps.

    Args:
        eta: How far below: 0 is `euler`, 1 the most.
        s_noise: Factor on the fresh noise.
    """
    for sigma, sigma_next in _levels(task.sigmas):
        denoised = task.denoise(noisy, sigma)
        if sigma_next == 0:
            return denoised
        noise = task.draw(noisy, "ancestral")
        stepped = each_stream(
            ancestral_step,
            noisy,
            denoised,
            noise,
            sigma=sigma,
            sigma_next=sigma_next,
            eta=eta,
            s_noise=s_noise,
        )
        noisy = task.keep(stepped)
    return noisy


def gradient_estimation(task: SamplerTask, noisy: AV[Tensor], *, gamma: float = 2.0) -> AV[Tensor]:
    """Extrapolate each velocity from the one before: Euler with a better guess of where the path bends.

    Args:
        gamma: 1 is `euler`; 2 continues the last change of velocity once more.

    Source: Permenter and Yuan 2023 (arXiv 2306.04848), section 5.
    """
    previous: AV[Tensor] | None = None
    for sigma, sigma_next in _levels(task.sigmas):
        denoised = task.denoise(noisy, sigma)
        if sigma_next == 0:
            return denoised
        velocity = each_stream(_velocity, noisy, denoised, sigma=sigma)
        guess = velocity if previous is None else each_stream(_extrapolate, velocity, previous, gamma=gamma)
        noisy = each_stream(_advance, noisy, guess, distance=sigma_next - sigma)
        previous = velocity
    return noisy


def dpmpp_2m(task: SamplerTask, noisy: AV[Tensor]) -> AV[Tensor]:
    """Extrapolate what is denoised from this step and the one before, in log sigma: DPM-Solver++(2M).

    Along -log sigma, x / sigma grows by denoised / sigma, so -log sigma is what the paper calls lambda.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """
    before: AV[Tensor] | None = None
    step = 1.0
    for sigma, sigma_next in _levels(task.sigmas):
        denoised = task.denoise(noisy, sigma)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        towards = _half_a_step_ahead(denoised, before, h / step)
        noisy = each_stream(euler_step, noisy, towards, sigma=sigma, sigma_next=sigma_next)
        before, step = denoised, h
    return noisy


def uni_pc(task: SamplerTask, noisy: AV[Tensor]) -> AV[Tensor]:
    """Predict as `dpmpp_2m`, then take each step again with what was denoised at its end: UniPC.

    The evaluation at a step's end is the one that the next step begins with, so the correction is free.

    Source: Zhao et al. 2023 (arXiv 2302.04867), algorithms 1 and 2, with B(h) = e^h - 1.
    """
    started: tuple[float, AV[Tensor], AV[Tensor]] | None = None  # the last step: its level, start, denoised
    before: AV[Tensor] | None = None  # what was denoised at the step before it
    step: float | None = None  # the size of that one
    for sigma, sigma_next in _levels(task.sigmas):
        denoised = task.denoise(noisy, sigma)
        if sigma_next == 0:
            return denoised
        if started is not None:
            level, start, first = started
            h = math.log(level / sigma)
            shares = uni_pc_coefficients(h, step)
            towards = each_stream(_between, first, before or first, denoised, shares=shares)
            noisy = each_stream(euler_step, start, towards, sigma=level, sigma_next=sigma)
            before, step = first, h
        started = sigma, noisy, denoised
        towards = _half_a_step_ahead(denoised, before, math.log(sigma / sigma_next) / (step or 1))
        noisy = each_stream(euler_step, noisy, towards, sigma=sigma, sigma_next=sigma_next)
    return noisy


def res_2s(task: SamplerTask, noisy: AV[Tensor], *, eta: float = 0.5) -> AV[Tensor]:
    """Take exponential Runge-Kutta steps of second order in log sigma, with fresh noise after each half.

    The noise added half-way would leave the second half out of step with the point it started from, so the
    start is moved to where it leads to the noisy middle (`_consistent_anchor`).

    Args:
        eta: Share of each level that is fresh noise: 0 is the deterministic method.

    Source: the step, Zhang and Chen 2022 (arXiv 2204.13902) with c2 = 1/2.
    """
    noisy = noisy.map(_widest)
    for sigma, sigma_next in _levels(task.sigmas):
        target = sigma_next or LAST_SIGMA
        h = math.log(sigma / target)
        a21, b1, b2 = res_2s_coefficients(h)
        half = math.sqrt(sigma * target)

        first = task.denoise(noisy, sigma)
        middle = each_stream(_move_towards, noisy, first, weight=h * a21)
        middle = _add_fresh_noise(task, noisy, middle, sigma, half, eta, "substep")
        anchor = noisy
        if eta > 0 and h < 0.5 and sigma > 0.03:
            anchor = each_stream(_consistent_anchor, middle, first, weight=h * a21)

        second = task.denoise(middle, half)
        end = each_stream(_combine, anchor, first, second, first_weight=h * b1, second_weight=h * b2)
        noisy = _add_fresh_noise(task, anchor, end, sigma, target, eta, "step")
    return task.denoise(noisy, LAST_SIGMA).map(Tensor.float)


def euler_step(noisy: Tokens, denoised: Tokens, *, sigma: float, sigma_next: float) -> Tokens:
    """Move along the straight line through `noisy` and `denoised`."""
    if sigma_next == 0:
        return denoised
    return _advance(noisy, _velocity(noisy, denoised, sigma=sigma), distance=sigma_next - sigma)


def ancestral_step(
    noisy: Tokens,
    denoised: Tokens,
    noise: Tokens,
    *,
    sigma: float,
    sigma_next: float,
    eta: float,
    s_noise: float = 1.0,
) -> Tokens:
    """Go down to `sigma_down`, scale the signal to what it is at `sigma_next` and fill up with noise."""
    sigma_down, scale, amount = ancestral_coefficients(sigma, sigma_next, eta)
    ratio = sigma_down / sigma
    return scale * (ratio * noisy + (1 - ratio) * denoised) + s_noise * amount * noise


def ancestral_coefficients(sigma: float, sigma_next: float, eta: float) -> tuple[float, float, float]:
    """Return the level to step down to, the factor on the signal and the amount of fresh noise."""
    sigma_down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    scale = (1 - sigma_next) / (1 - sigma_down)
    return sigma_down, scale, math.sqrt(max(0.0, sigma_next**2 - (sigma_down * scale) ** 2))


def res_2s_coefficients(h: float) -> tuple[float, float, float]:
    """Return a21, b1 and b2 of the exponential Runge-Kutta step of size `h` in log sigma."""
    phi_1 = -math.expm1(-h) / h
    phi_1_half = -math.expm1(-h / 2) / (h / 2)
    phi_2 = (math.expm1(-h) + h) / h**2
    return phi_1_half / 2, phi_1 - 2 * phi_2, 2 * phi_2


def uni_pc_coefficients(h: float, step: float | None) -> tuple[float, float]:
    """Return how much of the differences to the evaluation before and at the end a corrected step takes.

    Args:
        h: Size of the step in log sigma.
        step: That of the one before; None if there is none.
    """
    if step is None:
        return 0.0, 0.5
    phi = math.expm1(-h)
    first = (phi / -h - 1) / phi  # of constant slopes
    second = 2 * ((phi / -h - 1) / -h - 0.5) / phi  # of slopes that grow evenly
    ratio = -step / h
    share = (first - second) / (1 - ratio)
    return share / ratio, first - share


def sde_step(
    start: Tokens, end: Tokens, noise: Tokens, *, sigma: float, sigma_next: float, eta: float
) -> Tokens:
    """Replace part of the noise in `end` by fresh noise, keeping the level `sigma_next`.

    The line from `start` to `end` tells the noise and the clean latents that `end` consists of.
    """
    fresh = min(eta * sigma_next, 0.9999 * sigma_next)
    if fresh == 0:
        return end
    remaining = math.sqrt(sigma_next**2 - fresh**2)
    signal = (1 - sigma_next) + remaining
    velocity = (start - end) / (sigma - sigma_next)  # estimates noise - clean
    denoised = start - sigma * velocity
    return signal * (denoised + remaining / signal * velocity) + fresh * noise


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "gradient_estimation": gradient_estimation,
    "dpmpp_2m": dpmpp_2m,
    "uni_pc": uni_pc,
    "res_2s": res_2s,
}


def _levels(sigmas: Sigmas) -> Iterator[tuple[float, float]]:
    yield from itertools.pairwise(sigmas.tolist())


def _velocity(noisy: Tensor, denoised: Tensor, *, sigma: float) -> Tensor:
    return (noisy - denoised) / sigma


def _advance(noisy: Tensor, velocity: Tensor, *, distance: float) -> Tensor:
    return noisy + distance * velocity


def _extrapolate(velocity: Tensor, previous: Tensor, *, gamma: float) -> Tensor:
    return previous + gamma * (velocity - previous)


def _half_a_step_ahead(denoised: AV[Tensor], before: AV[Tensor] | None, ratio: float) -> AV[Tensor]:
    """Extrapolate to the middle of a step that is `ratio` times as long as the one before."""
    if before is None:
        return denoised
    return each_stream(_extrapolate, denoised, before, gamma=1 + ratio / 2)


def _between(start: Tensor, before: Tensor, end: Tensor, *, shares: tuple[float, float]) -> Tensor:
    return start + shares[0] * (before - start) + shares[1] * (end - start)


def _move_towards(anchor: Tensor, denoised: Tensor, *, weight: float) -> Tensor:
    return anchor + weight * (denoised - anchor)


def _combine(
    anchor: Tensor, first: Tensor, second: Tensor, *, first_weight: float, second_weight: float
) -> Tensor:
    return anchor + first_weight * (first - anchor) + second_weight * (second - anchor)


def _consistent_anchor(middle: Tensor, denoised: Tensor, *, weight: float) -> Tensor:
    """Solve `middle = anchor + weight * (denoised - anchor)` for the anchor.

    The reference iterates `anchor = middle - weight * (denoised - anchor)` a hundred times; `weight` is below
    1/4 there, so this is where that ends.
    """
    return (middle - weight * denoised) / (1 - weight)


def _add_fresh_noise(
    task: SamplerTask,
    start: AV[Tensor],
    end: AV[Tensor],
    sigma: float,
    target: float,
    eta: float,
    purpose: str,
) -> AV[Tensor]:
    if eta == 0:
        return end
    noise = task.draw(end, purpose).map(_standardised)
    return task.keep(each_stream(sde_step, start, end, noise, sigma=sigma, sigma_next=target, eta=eta))


def _standardised(noise: Tensor) -> Tensor:
    """Give each sample's noise exactly zero mean and unit deviation."""
    std, mean = torch.std_mean(noise, dim=(-2, -1), keepdim=True)
    return (noise - mean) / std


def _widest(tensor: Tensor) -> Tensor:
    """Convert to float64 where the device has it."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
