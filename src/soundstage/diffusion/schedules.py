"""Noise schedules: functions that return descending `sigmas`, `num_steps + 1` of them, the last one 0.

The shifted schedule spends more steps at high noise the more tokens there are, because many tokens
together survive more noise. Its logistic shift is

    sigma' = e^s / (e^s + 1 / sigma - 1)               s = "shift", from the token count

and a stretch then puts the last level before 0 at exactly `terminal`.

Sources: the shift, Esser et al. 2024 (arXiv 2403.03206), section 5.3.2; the linear-quadratic schedule, Movie
Gen (arXiv 2410.13720), section 3.4.2; the Beta schedule, Lee et al. 2024 (arXiv 2407.12173).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import Sigmas

Shift = Literal["official", "tokens"] | float

OFFICIAL_SHIFT = 2.05  # what the official pipelines use for every size: the shift of 4096 tokens
TERMINAL = 0.1  # last level before 0
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
REFINE = (0.909375, 0.725, 0.421875, 0.0)


def shift_for_tokens(num_tokens: int) -> float:
    """Return the shift on the official line through 0.95 at 1024 and 2.05 at 4096 tokens; not clamped."""
    slope = (2.05 - 0.95) / (4096 - 1024)
    return num_tokens * slope + 0.95 - 1024 * slope


def shifted(num_steps: int, *, shift: float = OFFICIAL_SHIFT, terminal: float | None = TERMINAL) -> Sigmas:
    """Make the schedule of the models that are not distilled.

    Args:
        shift: 0 leaves the levels evenly spaced; larger values move them towards 1.
        terminal: Last level before 0; None leaves it where the shift puts it.
    """
    levels = torch.linspace(1, 0, num_steps + 1)[:-1]
    levels = math.exp(shift) / (math.exp(shift) + (1 / levels - 1))
    if terminal is not None and num_steps > 1:
        clean_part = 1 - levels
        levels = 1 - clean_part * ((1 - terminal) / clean_part[-1])
    return _end_at_zero(levels)


def linear_quadratic(num_steps: int, *, threshold: float = 0.025) -> Sigmas:
    """Take half of the steps evenly down to `1 - threshold`, then fall quadratically with no kink."""
    if num_steps == 1:
        return _end_at_zero(torch.ones(1))
    num_linear = num_steps // 2
    num_quadratic = num_steps - num_linear
    slope = threshold / num_linear
    curvature = (1 - threshold - slope * num_quadratic) / num_quadratic**2
    position = torch.arange(num_steps, dtype=torch.float64)
    beyond = (position - num_linear).clamp(min=0)
    return _end_at_zero(1 - (slope * position + curvature * beyond**2))


def beta(num_steps: int, *, alpha: float = 0.6, shift: float = 2.37, resolution: int = 10_000) -> Sigmas:
    """Space the steps by the quantiles of a symmetric Beta distribution: dense at both ends, then shift.

    The quantiles index a table of `resolution` levels; an index that comes twice in a row is used once, so
    very many steps give fewer levels.
    """
    quantiles = [_beta_quantile(1 - i / num_steps, alpha) for i in range(num_steps)]
    indices = dict.fromkeys(round(q * (resolution - 1)) for q in quantiles)
    times = [(index + 1) / resolution for index in indices]
    return _end_at_zero(torch.tensor([math.exp(shift) / (math.exp(shift) + 1 / t - 1) for t in times]))


def distilled(num_steps: int = 8) -> Sigmas:
    """Return the fixed levels that the distilled models were trained for."""
    return _fixed(DISTILLED, num_steps, "distilled")


def refine(num_steps: int = 3) -> Sigmas:
    """Return the fixed levels of the second stage, which starts from an upsampled clip, not from noise."""
    return _fixed(REFINE, num_steps, "refine")


def begin_at(sigmas: Sigmas, start: float) -> Float[Tensor, " rest"]:
    """Put `start` in the place of all levels from there up: to refine something, not to begin anew."""
    return torch.cat([sigmas.new_tensor([start]), sigmas[sigmas < sigmas.new_tensor(start)]])


def explicit(sigmas: Sequence[float]) -> Sigmas:
    """Check levels that the user wrote down.

    Raises:
        RequestError: They do not fall strictly from at most 1 to 0.
    """
    levels = list(sigmas)
    falling = all(high > low for high, low in itertools.pairwise(levels))
    if len(levels) < 2 or not falling or levels[0] > 1 or levels[-1] != 0:
        raise RequestError(f"sigmas={levels} must fall strictly from at most 1 to 0, such as 1, 0.7, 0")
    return torch.tensor(levels, dtype=torch.float32)


FIXED_STEPS = {"distilled": len(DISTILLED) - 1, "refine": len(REFINE) - 1}

SCHEDULES: dict[str, Callable[[int], Sigmas]] = {
    "shifted": shifted,
    "linear_quadratic": linear_quadratic,
    "beta": beta,
    "distilled": distilled,
    "refine": refine,
}


def make_sigmas(
    name: str, num_steps: int, *, shift: Shift = "official", num_tokens: int | None = None
) -> Sigmas:
    """Make the schedule `name` of the registry.

    Args:
        shift: Of the shifted schedule, which alone has one: the official constant, by the token count of the
            clip, or a number.
        num_tokens: Video tokens of the clip, for `shift="tokens"`.

    Raises:
        RequestError: The schedule has another number of steps, or the token count is missing.
    """
    if num_steps < 1:
        raise RequestError(f"num_inference_steps={num_steps} is not positive; the least is 1")
    if name != "shifted":
        return SCHEDULES[name](num_steps)
    if shift == "tokens":
        if num_tokens is None:
            raise RequestError("shift='tokens' needs a clip with video tokens; use 'official' or a number")
        return shifted(num_steps, shift=shift_for_tokens(num_tokens))
    return shifted(num_steps, shift=OFFICIAL_SHIFT if shift == "official" else float(shift))


def _fixed(levels: Sequence[float], num_steps: int, name: str) -> Sigmas:
    if num_steps != len(levels) - 1:
        allowed = len(levels) - 1
        raise RequestError(f"num_inference_steps={num_steps}: schedule {name!r} always has {allowed}")
    return torch.tensor(levels, dtype=torch.float32)


def _end_at_zero(levels: torch.Tensor) -> Sigmas:
    return torch.cat([levels.float(), torch.zeros(1)])


def _beta_quantile(probability: float, alpha: float) -> float:
    """Invert the distribution function of Beta(alpha, alpha) by bisection, to float64 precision."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _beta_cdf(middle, alpha) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_cdf(x: float, alpha: float) -> float:
    """Evaluate the regularised incomplete beta function I_x(alpha, alpha) by its continued fraction.

    Source: Abramowitz and Stegun, 26.5.8, by Lentz's method.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > 0.5:  # the fraction converges fast below the mean; above it, use the symmetry
        return 1 - _beta_cdf(1 - x, alpha)
    log_front = math.lgamma(2 * alpha) - 2 * math.lgamma(alpha) + alpha * math.log(x * (1 - x))
    value, ratio_c, ratio_d = 1.0, 1.0, 0.0
    for i in range(1, 200):
        half = i // 2
        if i % 2:
            coefficient = -(alpha + half) * (2 * alpha + half) * x / ((alpha + i - 1) * (alpha + i))
        else:
            coefficient = half * (alpha - half) * x / ((alpha + i - 1) * (alpha + i))
        ratio_d = 1 / (1 + coefficient * ratio_d)
        ratio_c = 1 + coefficient / ratio_c
        value *= ratio_c * ratio_d
        if abs(ratio_c * ratio_d - 1) < 1e-15:
            break
    return math.exp(log_front) / alpha / value
