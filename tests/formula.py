"""Weights and inputs given by a formula, so that published figures can be checked without a file."""

import math

import torch
from torch import Tensor, nn

from soundstage.models.vocoder.antialias import low_pass_filter


def fill(module: nn.Module, *, ignore_prefix: str = "") -> nn.Module:
    """Give tensor n, in the order of names, the values sin(1.7 (n + 1) + 0.9 i), scaled by what it is."""
    values = {}
    tensors = module.state_dict()
    for n, key in enumerate(sorted(tensors, key=lambda key: key.removeprefix(ignore_prefix))):
        tensor = tensors[key]
        if key.endswith("filter"):
            values[key] = low_pass_filter().double()
            continue
        if key.endswith("blur_down.kernel"):
            row = torch.tensor([1, 4, 6, 4, 1], dtype=torch.float64) / 16
            values[key] = torch.outer(row, row)[None, None]
            continue
        wave = torch.arange(tensor.numel(), dtype=torch.float64).mul_(0.9).add_(1.7 * (n + 1)).sin_()
        if "std-of-means" in key:
            wave = 1 + 0.5 * wave
        elif tensor.ndim > 1:
            wave /= math.sqrt(tensor.numel() / tensor.shape[0])
        elif "norm" in key and key.endswith("weight"):
            wave = 1 + 0.1 * wave
        else:
            wave *= 0.1
        values[key] = wave.view(tensor.shape)
    module.load_state_dict(values, assign=True)
    return module.eval()


def ramp(*shape: int) -> Tensor:
    return torch.sin(0.31 * torch.arange(math.prod(shape), dtype=torch.float64) + 0.2).view(shape)


def check(got: Tensor, mean: float, mean_abs: float, first: list[float], last: float) -> None:
    flat = got.flatten()
    figures = torch.stack((flat.mean(), flat.abs().mean(), *flat[:5], flat[-1]))
    expected = torch.tensor([mean, mean_abs, *first, last], dtype=torch.float64)
    torch.testing.assert_close(figures, expected, atol=2e-8, rtol=0)
