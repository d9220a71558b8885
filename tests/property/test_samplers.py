"""Laws that every sampler keeps, on problems with known solutions.

On Gaussian data the best denoiser is known and so is the path: from the noise z it ends at mean + spread z.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soundstage.core.types import AV
from soundstage.diffusion.samplers import (
    SAMPLERS,
    Sampler,
    SamplerTask,
    dpmpp_2m,
    euler,
    gradient_estimation,
    res_2s,
    uni_pc,
)
from soundstage.diffusion.schedules import explicit, make_sigmas

MEAN, SPREAD = 0.7, 0.4


def task(denoise: Callable[[Tensor, float], Tensor], sigmas: Tensor, seed: int = 0, keep=None) -> SamplerTask:
    generators = {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(("video", "audio"))}

    def draw(like: AV[Tensor], purpose: str) -> AV[Tensor]:
        def noise(name: str, tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return torch.randn(tensor.shape, generator=generators[name], dtype=tensor.dtype)

        return AV(noise("video", like.video), noise("audio", like.audio))

    return SamplerTask(
        denoise=lambda noisy, sigma: noisy.map(lambda x: denoise(x, sigma)),
        sigmas=sigmas,
        keep=keep or (lambda tokens: tokens),
        draw=draw,
    )


def gaussian(noisy: Tensor, sigma: float) -> Tensor:
    """Denoise data of mean MEAN and deviation SPREAD."""
    gain = (1 - sigma) * SPREAD**2 / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (noisy - (1 - sigma) * MEAN)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=15, deadline=None)
@given(num_steps=st.integers(1, 12), seed=st.integers(0, 99), shift=st.floats(0, 4))
def test_every_sampler_is_exact_on_a_straight_path(
    name: str, num_steps: int, seed: int, shift: float
) -> None:
    target = noise(seed + 1, 1, 6, 4)
    sigmas = make_sigmas("shifted", num_steps, shift=shift)
    result = SAMPLERS[name](task(lambda x, s: target.to(x), sigmas), AV(noise(seed, 1, 6, 4)))
    assert torch.equal(result.video, target)
    assert result.audio is None


@pytest.mark.parametrize("name", SAMPLERS)
def test_kept_tokens_stay_bit_equal_through_every_sampler(name: str) -> None:
    clean = noise(3, 1, 6, 4)
    mask = torch.tensor([0.0, 1, 1, 0, 1, 0.5])[None, :, None]

    def keep_one(x: Tensor) -> Tensor:
        return torch.lerp(clean.to(x), x, mask.to(x))

    sigmas = make_sigmas("shifted", 7)
    start = AV(keep_one(noise(4, 1, 6, 4)))
    sampling = task(lambda x, s: keep_one(gaussian(x, s)), sigmas, keep=lambda pair: pair.map(keep_one))
    result = SAMPLERS[name](sampling, start).video
    assert torch.equal(result[:, [0, 3]], clean[:, [0, 3]])
    assert not torch.equal(result[:, [1, 2]], clean[:, [1, 2]])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_returns_float32_and_leaves_its_input_alone(name: str) -> None:
    start = AV(noise(0, 2, 3, 4), noise(1, 2, 5, 2))
    before = start.video.clone()
    result = SAMPLERS[name](task(gaussian, make_sigmas("shifted", 4)), start)
    assert result.video.dtype == result.audio.dtype == torch.float32
    assert result.audio.shape == (2, 5, 2)
    assert torch.equal(start.video, before)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_stream_is_sampled_the_same_with_and_without_the_other(name: str) -> None:
    sigmas = make_sigmas("shifted", 5)
    video = noise(0, 1, 6, 4)
    together = SAMPLERS[name](task(gaussian, sigmas), AV(video, noise(1, 1, 3, 2)))
    alone = SAMPLERS[name](task(gaussian, sigmas), AV(video))
    assert torch.equal(together.video, alone.video)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_reproduces_a_gaussian(name: str) -> None:
    """Mean and deviation of 4,000 samples; the tolerance is three standard errors and the step error."""
    sigmas = explicit([1 - i / 100 for i in range(100)] + [0.0])
    result = SAMPLERS[name](task(gaussian, sigmas), AV(noise(5, 1, 1000, 4))).video
    assert result.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert result.std().item() == pytest.approx(SPREAD, rel=0.07)


def error_on_gaussian(sampler: Sampler, num_steps: int) -> float:
    start = noise(6, 1, 64, 4).double()
    sigmas = explicit([1 - i / num_steps for i in range(num_steps)] + [0.0])
    result = sampler(task(gaussian, sigmas), AV(start)).video
    return (result - (MEAN + SPREAD * start)).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (euler, 1),
        (gradient_estimation, 1),
        (partial(gradient_estimation, gamma=1.5), 2),  # this is the two-step Adams-Bashforth method
        (dpmpp_2m, 2),
        (uni_pc, 2),
        (partial(res_2s, eta=0.0), 2),
    ],
    ids=["euler", "gradient_estimation", "gradient_estimation_1.5", "dpmpp_2m", "uni_pc", "res_2s"],
)
def test_samplers_converge_at_their_order(sampler: Sampler, order: int) -> None:
    coarse, fine = (error_on_gaussian(sampler, num_steps) for num_steps in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


def test_other_samplers_beat_euler_at_few_evaluations() -> None:
    plain = error_on_gaussian(euler, 17)
    assert error_on_gaussian(gradient_estimation, 17) < plain
    assert error_on_gaussian(dpmpp_2m, 17) < plain / 3
    assert error_on_gaussian(uni_pc, 17) < error_on_gaussian(dpmpp_2m, 17)
    assert error_on_gaussian(partial(res_2s, eta=0.0), 8) < plain


@pytest.mark.parametrize("name", ["euler_ancestral", "res_2s"])
def test_stochastic_samplers_follow_their_generator(name: str) -> None:
    sigmas, start = make_sigmas("shifted", 6), AV(noise(0, 1, 6, 4))
    first, again, other = (SAMPLERS[name](task(gaussian, sigmas, seed), start).video for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "per_step", "extra"), [("euler", 1, 0), ("dpmpp_2m", 1, 0), ("uni_pc", 1, 0), ("res_2s", 2, 1)]
)
def test_number_of_evaluations(name: str, per_step: int, extra: int) -> None:
    calls = []
    sampling = task(lambda x, s: calls.append(s) or gaussian(x, s), make_sigmas("shifted", 5))
    SAMPLERS[name](sampling, AV(noise(0, 1, 2, 2)))
    assert len(calls) == 5 * per_step + extra
    assert all(high > low for high, low in itertools.pairwise(calls))
