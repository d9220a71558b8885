"""Optimisers: Muon for matrices and convolution kernels, AdamW for everything else."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from soundstage.training import distributed
from soundstage.training.recipe import OptimRecipe

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic coefficients; Jordan et al. 2024, "Muon"


def orthogonalise(matrix: Float[Tensor, "rows columns"], steps: int = 4) -> Float[Tensor, "rows columns"]:
    """Replace the singular values of a matrix by values near 1, without an SVD.

    Every iterate is a polynomial of the Gram matrix times the start, so the iteration runs on the small
    square Gram matrix and touches the long side only twice: much cheaper for convolution kernels.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product: Tensor | None = None
    for step in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    x = x if product is None else product @ x
    result: Tensor = x.T if tall else x
    return result


def orthogonalise_in_half(
    matrix: Float[Tensor, "rows columns"], steps: int = 5
) -> Float[Tensor, "rows columns"]:
    """Do as `orthogonalise`, by the iteration as published, in bfloat16.

    It forgives rounding, which the iteration on the Gram matrix does not. Processors with bfloat16 products
    do its five steps in half the time that four in float32 take.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix)


class Muon(Optimizer):
    """Momentum whose update is orthogonalised; kernels count as (out, in × extents) matrices.

    The update is scaled to a root mean square of about `lr`, so that it is comparable across shapes.

    Args:
        in_half: Orthogonalise in bfloat16; momentum and weights stay as they are.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        in_half: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.orthogonalise = orthogonalise_in_half if in_half else orthogonalise

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002  never passed
        """Update every parameter that has a gradient; several processes share the orthogonalising."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
                momentum.lerp_(param.grad, 1 - group["momentum"])
                param.grad.lerp_(momentum, group["momentum"])  # Nesterov; the gradient is not needed any more
            mine, size = distributed.share()
            for index, param in enumerate(params):
                if index % size == mine:
                    param.grad.copy_(self.orthogonalise(param.grad.flatten(1)).view_as(param))
                else:
                    param.grad.zero_()
            distributed.sum_gradients(params)
            for param in params:
                rows, columns = param.flatten(1).shape
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(param.grad, alpha=-group["lr"] * math.sqrt(max(rows, columns)))


def build_optimizers(module: nn.Module, recipe: OptimRecipe, in_half: bool = False) -> list[Optimizer]:
    """Share the parameters of a module between the optimisers."""
    params = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in params if p.ndim >= 2 and min(p.flatten(1).shape) > 8]
    if recipe.optimizer == "adamw":
        chosen: set[int] = set()
    else:
        embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        chosen = {id(p) for p in matrices} - embeddings
    rest = [p for p in params if id(p) not in chosen]
    decayed = [p for p in rest if p.ndim >= 2]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = []
    if any(group["params"] for group in groups):
        optimizers.append(
            AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=recipe.betas, eps=1e-8)
        )
    if chosen:
        muon_params = [p for p in params if id(p) in chosen]
        optimizers.append(
            Muon(muon_params, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay, in_half=in_half)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def lr_share(recipe: OptimRecipe, step: int, progress: float) -> float:
    """Return the share of the peak learning rate at a step, `progress` (0 to 1) of the way."""
    warmup = min(1.0, (step + 1) / max(recipe.warmup_steps, 1))
    progress = min(max(progress, 0.0), 1.0)
    if recipe.schedule == "constant":
        decay = 1.0
    elif recipe.schedule == "linear":
        decay = 1.0 + (recipe.final_lr - 1.0) * progress
    else:
        decay = recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    return warmup * decay
