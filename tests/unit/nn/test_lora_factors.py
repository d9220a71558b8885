"""Low-rank factors train beside a network that stands still."""

import pytest
import torch
from torch import nn

from soundstage.core.errors import ConfigError
from soundstage.nn.lora import Addition, fuse
from soundstage.nn.lora_factors import LowRankFactors


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 10), nn.Sequential(nn.GELU(), nn.Linear(10, 3)))
    return layers.requires_grad_(False)


SHAPES = {"0": (10, 6), "1.1": (3, 10)}


def moved(rank=2):
    factors = LowRankFactors(SHAPES, rank)
    for up in factors.up.values():
        nn.init.normal_(up)
    return factors


def test_new_factors_add_nothing(network):
    x = torch.randn(4, 6)
    assert torch.equal(LowRankFactors(SHAPES, 2).call(network, x), network(x))


def test_a_call_is_one_of_the_network_with_the_additions_in_its_weights(network):
    factors, x = moved(), torch.randn(4, 6)
    got = factors.call(network, x)
    before = network(x)
    for name, low_rank in factors.additions():
        layer = network.get_submodule(name)
        layer.weight.copy_(fuse(layer.weight, [Addition(low_rank, 1.0)]).detach())
    torch.testing.assert_close(got, network(x))
    assert not torch.allclose(got, before)


def test_gradients_reach_the_factors_and_leave_the_network_alone(network):
    factors, before = moved(), [p.clone() for p in network.parameters()]
    factors.call(network, torch.randn(4, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in factors.parameters())
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_weights_are_made_in_float32_under_autocast(network):
    factors, x = moved(), torch.randn(4, 6)
    expected = dict(factors.additions())
    seen = {}
    network[0].register_forward_pre_hook(lambda layer, _: seen.update(weight=layer.weight))
    with torch.autocast("cpu", torch.bfloat16):
        factors.call(network, x)
    assert torch.equal(seen["weight"], network[0].weight + expected["0"].product())


def test_a_narrow_layer_gets_factors_of_its_width():
    factors = LowRankFactors(SHAPES, 8)
    assert {name: len(low_rank.down) for name, low_rank in factors.additions()} == {"0": 6, "1.1": 3}


def test_rank_zero_is_refused():
    with pytest.raises(ConfigError, match="rank=0 of a LoRA is below 1"):
        LowRankFactors(SHAPES, 0)
