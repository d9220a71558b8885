"""Rows that tokens look up: the same numbers as with a row per token, and the host knows the runs."""

import pytest
import torch

from soundstage.nn.kernels import lookup, plain
from soundstage.nn.kernels.lookup import Lookup, Run, TokenRows, has_runs, in_runs, spread
from soundstage.nn.kernels.plain import ScaleShift
from synchronisations import Synchronisations

FIRST_FRAME = torch.tensor([[0, 0, 1, 1, 1]])
PER_ITEM = torch.tensor([[0, 0, 2, 2, 2], [1, 2, 2, 0, 0]])
DTYPES = (torch.float32, torch.bfloat16)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def looked_up(row_of, count, dtype=torch.float32):
    """Make some rows per token of one lookup, as a modulation does; 37 columns fill no vector register."""
    table, where = draw(3, count, 37, dtype=dtype), Lookup.of(row_of)
    return [TokenRows(row, where) for row in table.unbind(1)]


def test_runs_are_found():
    assert Lookup.of(PER_ITEM).runs == (
        (Run(0, 2, 0), Run(2, 5, 2)),
        (Run(0, 1, 1), Run(1, 3, 2), Run(3, 5, 0)),
    )
    assert Lookup.of(torch.zeros(1, 3, dtype=torch.long)).runs == ((Run(0, 3, 0),),)


def test_a_mask_in_space_has_too_many_runs_to_go_over():
    stripes = torch.arange(4 * lookup.MOST_RUNS)[None] % 2
    assert Lookup.of(stripes).runs is None
    (rows,) = looked_up(stripes, 1)
    with torch.no_grad():
        assert not has_runs(rows)
        x = draw(1, stripes.shape[1], 37, seed=1)
        expected = plain.gate_add(x, spread(rows), x)
        assert torch.equal(plain.gate_add(x.clone(), rows, x, in_place=True), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row_of", [FIRST_FRAME, PER_ITEM], ids=["one_for_all", "per_item"])
@torch.no_grad()
def test_steps_that_look_rows_up_equal_those_with_a_row_per_token(dtype, row_of):
    x, update = draw(2, 5, 37, seed=1, dtype=dtype), draw(2, 5, 37, seed=2, dtype=dtype)
    rows = looked_up(row_of, 4, dtype)
    assert has_runs(*rows)
    full = [spread(row) for row in rows]
    got = plain.norm_modulate(x, *rows[:2], 1e-6)
    assert torch.equal(got, plain.norm_modulate(x, *full[:2], 1e-6))
    both = plain.norm_modulate_twice(x, ScaleShift(*rows[:2]), ScaleShift(*rows[2:]), 1e-6)
    wanted = plain.norm_modulate_twice(x, ScaleShift(*full[:2]), ScaleShift(*full[2:]), 1e-6)
    assert all(torch.equal(*pair) for pair in zip(both, wanted, strict=True))
    before = x.clone()
    assert torch.equal(plain.scale_shift(x, *rows[:2]), plain.scale_shift(x, *full[:2]))
    assert torch.equal(plain.gate_add(x, rows[0], update), plain.gate_add(x, full[0], update))
    assert torch.equal(x, before)
    added = plain.gate_add(x.clone(), rows[0], update, in_place=True)
    assert torch.equal(added, plain.gate_add(x.clone(), full[0], update, in_place=True))


def test_gradients_reach_the_table():
    table = draw(3, 37).requires_grad_()
    rows = TokenRows(table, Lookup.of(FIRST_FRAME))
    x = torch.ones(1, 5, 37)
    plain.gate_add(x, rows, x).sum().backward()
    assert table.grad[:, 0].tolist() == [2, 3, 0]


@torch.no_grad()
def test_rows_of_different_lookups_are_spread():
    (scale,), (shift,) = looked_up(FIRST_FRAME, 1), looked_up(FIRST_FRAME.flip(1), 1)
    assert not has_runs(scale, shift)
    x = draw(1, 5, 37, seed=1)
    expected = plain.norm_modulate(x, spread(scale), spread(shift), 1e-6)
    assert torch.equal(plain.norm_modulate(x, scale, shift, 1e-6), expected)


@torch.no_grad()
def test_steps_do_not_wait_for_the_device():
    rows, x = looked_up(PER_ITEM, 2), draw(2, 5, 37, seed=1)
    with Synchronisations() as waits:
        plain.norm_modulate(x, *rows, 1e-6)
        plain.gate_add(x, rows[0], x, in_place=True)
    assert waits.found == []


def test_items_that_have_no_runs_are_an_error():
    (rows,) = looked_up(PER_ITEM, 1)
    with pytest.raises(AssertionError):
        list(in_runs(3, rows))
