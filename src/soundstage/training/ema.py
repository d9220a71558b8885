"""Exponential moving average of weights: what is validated, exported and shipped."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Average of a module's floating-point parameters and buffers."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module; early on over a shorter window, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor.detach(), 1 - decay)
            else:
                self.weights[name].copy_(tensor)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a saved average, which may lie on another device than the module."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    def swap(self, module: nn.Module) -> None:
        """Exchange the module's weights and the average; call it twice to undo."""
        current: dict[str, Tensor] = module.state_dict()
        for name, tensor in current.items():
            kept = tensor.detach().clone()
            with torch.no_grad():
                tensor.copy_(self.weights[name])
            self.weights[name] = kept
