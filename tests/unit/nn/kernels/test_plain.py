import pytest
import torch

from soundstage.nn.kernels import plain
from soundstage.nn.kernels.plain import ScaleShift


def test_quantised_rows_come_back_within_a_sixteenth():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) * 5
    values, scales = plain.quantise_rows(x)
    assert values.dtype == torch.float8_e4m3fn
    back = values.float() * scales
    assert bool(((back - x).abs() <= torch.maximum(x.abs() / 16, scales / 1024)).all())
    assert float((back.abs().amax(-1) / x.abs().amax(-1) - 1).abs().max()) < 1e-6


def test_rows_are_quantised_on_their_own():
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    x[0] *= 1e4
    alone = plain.quantise_rows(x[1:])
    together = plain.quantise_rows(x)
    assert torch.equal(together.values[1:].float(), alone.values.float())
    assert torch.equal(together.scales[1:], alone.scales)


def test_gate_add_lets_gradients_through():
    x, gate, update = (torch.ones(1, 2, 4, requires_grad=True) for _ in range(3))
    plain.gate_add(x, gate * 2, update * 3).sum().backward()
    assert float(gate.grad.mean()) == 6
    assert float(update.grad.mean()) == 6
    assert float(x.grad.mean()) == 1


@pytest.mark.parametrize("is_trained", [False, True])
def test_norm_modulate_twice_is_two_of_one(is_trained):
    noise = torch.Generator().manual_seed(0)
    x, *rows = (torch.randn(2, 3, 8, generator=noise) for _ in range(5))
    first, second = ScaleShift(*rows[:2]), ScaleShift(*rows[2:])
    with torch.set_grad_enabled(is_trained):
        x.requires_grad_(is_trained)
        both = plain.norm_modulate_twice(x, first, second, 1e-6)
        for one, way in zip(both, (first, second), strict=True):
            assert torch.equal(one, plain.norm_modulate(x, *way, 1e-6))
            assert one.requires_grad == is_trained
