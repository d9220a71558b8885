"""The feed-forward network."""

import pytest
import torch
from torch.nn import functional as F

from soundstage.nn.feed_forward import FeedForward


@pytest.mark.parametrize("bias", [True, False])
def test_names_are_the_official_ones(bias: bool):
    names = set(FeedForward(4, 16, bias=bias).state_dict())
    weights = {"net.0.proj.weight", "net.2.weight"}
    assert names == weights | ({"net.0.proj.bias", "net.2.bias"} if bias else set())


def test_activation_is_tanh_gelu():
    ff = FeedForward(4, 8)
    x = torch.randn(2, 3, 4)
    first, last = ff.net[0].proj, ff.net[2]
    torch.testing.assert_close(ff(x), last(F.gelu(first(x), approximate="tanh")))


def test_tokens_do_not_mix():
    ff = FeedForward(4, 8)
    x = torch.randn(1, 3, 4)
    torch.testing.assert_close(ff(x)[:, 1:], ff(x[:, 1:]))
