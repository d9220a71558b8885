"""Low-rank additions: fused or beside the layer, by the written formulas."""

import pytest
import torch
from torch import Tensor, nn

from live_bytes import LiveBytes
from soundstage.nn.lora import Addition, LoraLinear, LowRank, fuse

OUTPUTS, INPUTS, RANK = 12, 20, 3


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)


def low_rank(seed: int = 0, *, scale: float = 1.0, magnitude: bool = False) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, INPUTS, generator=generator)
    up = torch.randn(OUTPUTS, RANK, generator=generator)
    lengths = torch.rand(OUTPUTS, generator=generator) + 0.5
    return LowRank(down=down, up=up, scale=scale, magnitude=lengths if magnitude else None)


def linear(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(INPUTS, OUTPUTS, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight())
        if bias:
            layer.bias.copy_(torch.linspace(-1, 1, OUTPUTS))
    return layer.requires_grad_(False)


def test_fusing_adds_strength_times_scale_times_the_product() -> None:
    given = low_rank(scale=0.25)
    expected = weight() + 0.7 * 0.25 * (given.up @ given.down)
    torch.testing.assert_close(fuse(weight(), [Addition(given, 0.7)]), expected)


def test_dora_gives_every_row_the_length_it_states() -> None:
    given = low_rank(scale=0.5, magnitude=True)
    fused = fuse(weight(), [Addition(given, 1.0)])
    moved = (weight().double() + 0.5 * (given.up.double() @ given.down.double())).numpy()
    lengths = (moved**2).sum(axis=1) ** 0.5
    assert given.magnitude is not None
    expected = given.magnitude.numpy()[:, None] * moved / lengths[:, None]
    torch.testing.assert_close(fused, torch.from_numpy(expected).float())
    torch.testing.assert_close(fused.norm(dim=1), given.magnitude)


def test_half_of_a_dora_is_half_the_way() -> None:
    given = low_rank(magnitude=True)
    whole, half = (fuse(weight(), [Addition(given, strength)]) for strength in (1.0, 0.5))
    torch.testing.assert_close(half, (weight() + whole) / 2)


def test_row_that_dora_makes_vanish_stays_finite() -> None:
    given = LowRank(down=torch.zeros(1, 2), up=torch.zeros(2, 1), magnitude=torch.tensor([0.0, 1.0]))
    assert fuse(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), [Addition(given, 1.0)]).tolist() == [
        [0.0, 0.0],
        [pytest.approx(0.6), pytest.approx(0.8)],
    ]


@pytest.mark.parametrize("magnitude", [False, True])
def test_order_of_several_does_not_matter(magnitude: bool) -> None:
    first, second = Addition(low_rank(1, magnitude=magnitude), 0.5), Addition(low_rank(2), -0.3)
    torch.testing.assert_close(fuse(weight(), [first, second]), fuse(weight(), [second, first]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_no_change_bit_for_bit(dtype: torch.dtype) -> None:
    nothing = [Addition(low_rank(magnitude=True), 0.0), Addition(low_rank(), 0.0)]
    assert torch.equal(fuse(weight(dtype), nothing), weight(dtype))
    layer, x = linear(dtype), torch.randn(4, INPUTS).to(dtype)
    assert torch.equal(LoraLinear(layer, nothing)(x), layer(x))


def test_sum_of_several_is_rounded_once() -> None:
    """Additions of a quarter of a bfloat16 step vanish one by one and count together."""
    ones = torch.ones(2, 2, dtype=torch.bfloat16)
    step = 2.0**-7
    small = LowRank(down=torch.full((1, 2), step / 4), up=torch.ones(2, 1))
    assert torch.equal(fuse(ones, [Addition(small, 1.0)]), ones)
    assert torch.equal(fuse(ones, [Addition(small, 1.0)] * 4), ones + step)


def test_fusing_needs_the_sum_and_one_product() -> None:
    """A GPU that holds as many blocks as fit has little room for more."""
    given = torch.randn(64, 256).bfloat16()
    factors = LowRank(down=torch.randn(1, 256), up=torch.randn(64, 1), scale=0.5)
    with LiveBytes() as live:
        fuse(given, [Addition(factors, 0.5), Addition(factors, 0.5)])
    assert live.peak == pytest.approx(2 * 4 * given.numel(), rel=0.05)  # float32


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("magnitude", [False, True])
def test_branches_compute_what_the_fused_layer_computes(bias: bool, magnitude: bool) -> None:
    additions = [
        Addition(low_rank(1, scale=0.5, magnitude=magnitude), 0.8),
        Addition(low_rank(2, scale=2.0), -0.4),
        Addition(low_rank(3), 0.0),
    ]
    layer, x = linear(bias=bias), torch.randn(2, 5, INPUTS)
    beside = LoraLinear(layer, additions)(x)
    layer.weight.copy_(fuse(layer.weight, additions))
    torch.testing.assert_close(beside, layer(x), atol=1e-4, rtol=1e-4)  # float32, another order of sums


def test_twin_shows_the_layer_and_leaves_it_alone() -> None:
    layer = linear()
    before = layer.weight.clone()
    twin = LoraLinear(layer, [Addition(low_rank(), 1.0)])
    twin(torch.randn(1, INPUTS))
    assert twin.base is layer
    assert twin.weight is layer.weight
    assert twin.bias is layer.bias
    assert (twin.in_features, twin.out_features) == (INPUTS, OUTPUTS)
    assert torch.equal(layer.weight, before)
    assert set(twin.state_dict()) == {"base.weight", "base.bias"}


def test_branches_are_computed_in_the_type_of_the_layer() -> None:
    twin = LoraLinear(linear(torch.bfloat16), [Addition(low_rank(), 1.0)])
    assert twin(torch.randn(1, INPUTS).bfloat16()).dtype == torch.bfloat16


def test_weight_is_not_looked_at_where_only_its_product_counts() -> None:
    """It may be on disk, or have to be made of codes; one on "meta" shows that nothing is done with it."""
    unseen = nn.Linear(INPUTS, OUTPUTS, device="meta")
    twin = LoraLinear(unseen, [Addition(low_rank(scale=0.5), 0.7)], torch.bfloat16)
    assert twin.down is not None
    assert twin.up is not None
    assert twin.own is None
    assert twin.down.dtype == twin.up.dtype == torch.bfloat16
    torch.testing.assert_close(twin.up, (0.35 * low_rank().up).bfloat16())
