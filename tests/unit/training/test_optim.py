"""Optimisers move weights as their papers say."""

import math

import pytest
import torch
from torch import nn

from soundstage.training.optim import (
    Muon,
    build_optimizers,
    lr_share,
    orthogonalise,
    orthogonalise_in_half,
)
from soundstage.training.recipe import OptimRecipe


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.max() < 1.25
    assert values.min() > 0.5


def test_orthogonalise_equals_the_direct_iteration() -> None:
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(1))
    x = matrix / matrix.norm()
    for _ in range(4):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalise(matrix), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_half_precision_orthogonalises_as_well(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise_in_half(matrix)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.max() < 1.25
    assert values.min() > 0.6
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    alike = torch.nn.functional.cosine_similarity(result.flatten(), (left @ right).flatten(), dim=0)
    assert alike > 0.98


def test_muon_orthogonalises_in_the_asked_precision() -> None:
    gradient = torch.randn(32, 96, generator=torch.Generator().manual_seed(2))
    moved = []
    for in_half in (False, True):
        param = nn.Parameter(torch.zeros(32, 96))
        param.grad = gradient.clone()
        (optimizer,) = build_optimizers(nn.ParameterList([param]), OptimRecipe(matrix_lr=0.01), in_half)
        optimizer.step()
        moved.append(param.detach())
    assert not torch.equal(*moved)
    assert torch.nn.functional.cosine_similarity(*(m.flatten() for m in moved), dim=0) > 0.9


def test_muon_updates_have_the_root_mean_square_of_the_learning_rate() -> None:
    param = nn.Parameter(torch.zeros(32, 96))
    param.grad = torch.randn(32, 96, generator=torch.Generator().manual_seed(2))
    Muon([param], lr=0.01).step()
    assert param.detach().square().mean().sqrt().item() == pytest.approx(0.01, rel=0.25)


def test_muon_treats_kernels_as_matrices() -> None:
    kernel = nn.Parameter(torch.zeros(8, 4, 3, 3))
    kernel.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    Muon([kernel], lr=0.1).step()
    values = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert values.max() / values.min() < 2.5


def test_muon_descends_a_quadratic() -> None:
    target = torch.randn(10, 20, generator=torch.Generator().manual_seed(4))
    param = nn.Parameter(torch.zeros(10, 20))
    optimizer = Muon([param], lr=0.05)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        (param - target).square().sum().backward()
        optimizer.step()
    assert (param - target).abs().max() < 0.1


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    module = nn.ModuleDict(
        {"embed": nn.Embedding(20, 16), "layer": nn.Linear(16, 16), "norm": nn.LayerNorm(16)}
    )
    adamw, muon = build_optimizers(module, OptimRecipe())
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [(16, 16)]
    given_to_adamw = {id(p) for g in adamw.param_groups for p in g["params"]}
    assert id(module["embed"].weight) in given_to_adamw
    total = sum(len(g["params"]) for o in (adamw, muon) for g in o.param_groups)
    assert total == len(list(module.parameters()))


def test_adamw_alone_takes_everything() -> None:
    (only,) = build_optimizers(nn.Linear(16, 16), OptimRecipe(optimizer="adamw"))
    assert sum(len(g["params"]) for g in only.param_groups) == 2


@pytest.mark.parametrize(("schedule", "middle"), [("constant", 1.0), ("linear", 0.525), ("cosine", 0.525)])
def test_learning_rate_warms_up_and_decays(schedule: str, middle: float) -> None:
    recipe = OptimRecipe(schedule=schedule, warmup_steps=10, final_lr=0.05)
    assert lr_share(recipe, 0, 0.0) == pytest.approx(0.1)
    assert lr_share(recipe, 500, 0.5) == pytest.approx(middle)
    assert lr_share(recipe, 500, 2.0) == pytest.approx(1.0 if schedule == "constant" else 0.05)
    assert not math.isnan(lr_share(recipe, 10**9, 1.0))
