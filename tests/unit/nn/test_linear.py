"""Linear layers by the shortest way: always the same numbers, whatever stands in for a layer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from live_bytes import LiveBytes
from soundstage.nn import linear
from soundstage.nn.linear import is_plain, join, project, project_together
from soundstage.nn.lora import Addition, LoraLinear, LowRank

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # float32, two libraries


def layers(*widths: int, bias: bool = True, inputs: int = 96) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(inputs, width, bias=bias) for width in widths]


@pytest.mark.parametrize("activation", ["none", "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 96), (2, 70, 96), (140, 96)])
@torch.no_grad()
def test_projection_equals_the_layer(shape: tuple, bias: bool, activation: str):
    (layer,) = layers(128, bias=bias)
    x = torch.randn(shape)
    expected = layer(x) if activation == "none" else F.gelu(layer(x), approximate="tanh")
    torch.testing.assert_close(project(layer, x, activation), expected, **CLOSE)


@torch.no_grad()
def test_large_products_go_to_onednn_and_small_ones_do_not():
    (layer,) = layers(128)
    assert linear._suits_onednn(torch.randn(1, 140, 96), layer.weight)
    assert not linear._suits_onednn(torch.randn(1, 15, 96), layer.weight)
    assert not linear._suits_onednn(torch.randn(1, 140, 96).bfloat16(), layer.bfloat16().weight)


def test_products_with_gradients_are_left_to_autograd():
    (layer,) = layers(128)
    project(layer, torch.randn(1, 140, 96), "gelu_tanh").sum().backward()
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_joined_layers_give_the_same_and_keep_their_names_and_values(bias: bool):
    three, x = nn.ModuleList(layers(32, 64, 32, bias=bias)), torch.randn(2, 70, 96)
    before, expected = copy.deepcopy(three.state_dict()), [layer(x) for layer in three]
    assert linear._joined(tuple(three)) is None
    assert join(tuple(three))
    assert linear._joined(tuple(three)) is not None
    assert linear._joined(tuple(three)[1:]) is not None, "keys and values alone, too"
    for name, value in three.state_dict().items():
        assert torch.equal(value, before[name])
    for got, wanted in zip(project_together(tuple(three), x), expected, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)


@torch.no_grad()
def test_writing_into_a_joined_weight_is_heard():
    three, x = layers(32, 32, 32), torch.randn(1, 70, 96)
    join(three)
    three[1].weight.mul_(2)
    assert linear._joined(three) is not None
    torch.testing.assert_close(project_together(three, x)[1], three[1](x), **CLOSE)


@torch.no_grad()
def test_what_takes_a_joined_layers_place_is_used():
    three, x = layers(32, 32, 32), torch.randn(1, 70, 96)
    join(three)
    factors = LowRank(down=torch.ones(1, 96), up=torch.ones(32, 1))
    twin = LoraLinear(three[2], [Addition(factors, 1.0)])
    assert not is_plain(twin)
    got = project_together((*three[:2], twin), x)
    torch.testing.assert_close(got[2], twin(x), **CLOSE)
    three[0].weight = nn.Parameter(torch.randn(32, 96))
    assert linear._joined(three) is None
    torch.testing.assert_close(project_together(three, x)[0], three[0](x), **CLOSE)


@torch.no_grad()
def test_copies_and_conversions_come_apart_but_stay_right():
    three, x = nn.ModuleList(layers(32, 32, 32)), torch.randn(1, 70, 96)
    join(tuple(three))
    for other in (copy.deepcopy(three), copy.deepcopy(three).double().float()):
        for got, layer in zip(project_together(tuple(other), x), three, strict=True):
            torch.testing.assert_close(got, layer(x), **CLOSE)


def test_every_joined_weight_has_its_own_gradient():
    three, x = layers(32, 64, 32), torch.randn(1, 70, 96)
    join(three)
    torch.cat(project_together(three, x), dim=-1).sum().backward()
    for layer in three:
        torch.testing.assert_close(layer.weight.grad, x.sum((0, 1)).expand_as(layer.weight), **CLOSE)
        assert layer.bias.grad is not None
        layer.requires_grad_(False)
    assert linear._joined(three) is not None, "weights that stand still are one, whatever the tokens want"


def test_layers_that_do_not_fit_together_are_left():
    wide, narrow = layers(32)[0], layers(32, inputs=48)[0]
    assert not join((wide, narrow))
    assert not join((wide, nn.Linear(96, 32, bias=False)))
    assert not join((wide, nn.Linear(96, 32).bfloat16()))


@torch.no_grad()
def test_hooks_of_a_layer_still_run():
    (layer,), seen = layers(32), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    project(layer, torch.randn(1, 70, 96))
    assert seen == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_activation_takes_no_memory_of_its_own(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    monkeypatch.setattr(linear, "_suits_onednn", lambda *_: False)  # as on a GPU
    layer, x = layers(256)[0].to(dtype), torch.randn(1, 140, 96).to(dtype)
    expected = F.gelu(layer(x), approximate="tanh")
    with LiveBytes().ignore(layer) as live:
        got = project(layer, x, "gelu_tanh")
    assert torch.equal(got, expected)
    assert live.peak - x.nbytes <= got.nbytes


@torch.no_grad()
def test_an_output_that_somebody_looks_at_is_not_activated_in_place():
    (layer,), seen = layers(128), []
    layer.register_forward_hook(lambda _, args, out: seen.append(out))
    x = torch.randn(1, 3, 96)
    project(layer, x, "gelu_tanh")
    assert torch.equal(seen[0], F.linear(x, layer.weight, layer.bias))


def as_on_a_gpu(bias, x, weight, *, use_gelu):
    """What the library of a GPU does: it activates what it has not rounded, by the tanh approximation."""
    assert use_gelu
    return F.gelu(torch.addmm(bias.float(), x.float(), weight.float()), approximate="tanh").to(x.dtype)


@torch.no_grad()
def test_a_gpu_activates_before_it_rounds(monkeypatch: pytest.MonkeyPatch):
    layer, x = layers(128)[0].bfloat16(), torch.randn(2, 70, 96).bfloat16()
    afterwards, exact = project(layer, x, "gelu_tanh"), project(layer.float(), x.float(), "gelu_tanh")
    monkeypatch.setattr(linear, "_is_on_gpu", lambda _: True)
    monkeypatch.setattr(torch, "_addmm_activation", as_on_a_gpu)
    got = project(layer.bfloat16(), x, "gelu_tanh")
    assert got.shape == (2, 70, 128)
    assert (got - exact).abs().mean() < (afterwards - exact).abs().mean()
    assert float(((got - exact).abs() / exact.abs().clamp(min=2**-6)).max()) <= 2**-8
    monkeypatch.setattr(torch, "_addmm_activation", lambda *_, **__: pytest.fail("no bias, no such product"))
    project(nn.Linear(96, 8, bias=False).bfloat16(), x, "gelu_tanh")
    project(layer, x)


@pytest.mark.gpu
@torch.no_grad()
def test_what_a_gpu_activates_itself_is_the_tanh_approximation():
    layer, x = layers(128)[0].cuda().bfloat16(), 3 * torch.randn(140, 96, device="cuda").bfloat16()
    exact = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate="tanh")
    torch.testing.assert_close(project(layer, x, "gelu_tanh").double(), exact, rtol=2**-7, atol=2**-9)
    erf = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    assert float((exact - erf).abs().max()) > 2**-12, "else the test could not tell them apart"


@torch.no_grad()
def test_weights_side_by_side_are_known_without_memory():
    with torch.device("meta"):
        three = layers(32, 64, 32)
        assert linear._joined(three) is None
        assert join(three)
        assert linear._joined(three)[0].shape == (128, 96)
        assert linear._joined([three[0], three[2]]) is None, "what lies between is not theirs"
