"""Modulation by the noise level: few levels for many tokens, tables in their own dtype."""

import pytest
import torch

from soundstage.models.transformer.modulation import (
    A2V,
    FEED_FORWARD,
    SELF_ATTENTION,
    AdaLNSingle,
    Modulation,
    NoiseLevels,
    modulate,
)
from soundstage.models.transformer.rows import add
from soundstage.nn.kernels.lookup import TokenRows, in_runs, spread


def random_adaln(dim: int = 8, num_rows: int = 6) -> AdaLNSingle:
    torch.manual_seed(0)
    adaln = AdaLNSingle(dim, num_rows)
    for parameter in adaln.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adaln


def test_one_level_per_item_needs_no_lookup():
    levels = NoiseLevels.of_tokens(torch.tensor([[0.5, 0.5], [0.2, 0.2]]))
    assert levels.lookup is None
    assert levels.values.tolist() == torch.tensor([0.5, 0.2]).tolist()


def test_levels_shared_by_many_tokens_are_kept_once():
    timesteps = torch.full((2, 50), 0.7)
    timesteps[:, :10] = 0
    levels = NoiseLevels.of_tokens(timesteps)
    assert len(levels.values) == 2
    assert torch.equal(levels.values[levels.lookup.row_of], timesteps)


def test_rows_of_distinct_levels_equal_those_of_every_token():
    adaln, table = random_adaln(), torch.randn(6, 8)
    timesteps = torch.tensor([[0.0, 0.7, 0.7, 0.35], [0.2, 0.2, 0.0, 0.1]])
    rows, embedded = adaln(NoiseLevels.of_tokens(timesteps), 1000.0, torch.float32)
    each, each_embedded = adaln(NoiseLevels(timesteps.flatten(), None), 1000.0, torch.float32)
    for got, expected in zip(rows.plus(table).spread(), each.plus(table).spread(), strict=True):
        torch.testing.assert_close(spread(got), expected.view(2, 4, 8))
    own, flat = (part.plus(table[:1]).spread()[0] for part in (embedded, each_embedded))
    torch.testing.assert_close(spread(own), flat.view(2, 4, 8))


def test_rows_of_items_broadcast_over_tokens():
    rows, _ = random_adaln()(NoiseLevels.of_items(torch.tensor([0.3, 0.9])), 1000.0, torch.float32)
    assert [row.shape for row in rows.plus(torch.zeros(6, 8)).spread()] == [(2, 1, 8)] * 6


def test_parts_pick_table_and_rows_alike():
    rows = Modulation(torch.arange(6.0)[None, :, None].expand(1, 6, 2), None)
    table = 10 * torch.arange(6.0)[:, None].expand(6, 2)
    assert [row[0, 0, 0].item() for row in rows.plus(table).spread(SELF_ATTENTION)] == [0, 11, 22]
    assert [row[0, 0, 0].item() for row in rows.plus(table).spread(FEED_FORWARD)] == [33, 44, 55]


def test_tables_are_cast_to_the_activations_before_they_are_added():
    values = torch.full((1, 1, 1), 1.0, dtype=torch.bfloat16)
    table = torch.full((1, 1), 2**-8 + 2**-16)  # rounds down in bfloat16
    (row,) = Modulation(values, None).plus(table).spread()
    assert row.dtype == torch.bfloat16
    assert row.item() == (values + table.bfloat16()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_tables_of_all_blocks_are_added_at_once_to_the_same_numbers(dtype):
    torch.manual_seed(0)
    rows = Modulation(torch.randn(2, 6, 8).to(dtype), None)
    tables = [torch.nn.Parameter(torch.randn(6, 8), requires_grad=False) for _ in range(3)]
    together = rows.plus_all(tables)
    for table in tables:
        assert torch.equal(together.plus(table).values, rows.plus(table).values)
    assert together.plus(tables[1]).values.data_ptr() == together.plus(tables[1]).values.data_ptr()
    other = torch.randn(6, 8)
    assert torch.equal(together.plus(other).values, rows.plus(other).values), "not one of them"
    part = Modulation(rows.values[:, :2], None)
    assert torch.equal(
        part.plus_all(tables, A2V).plus(tables[2], A2V).values, part.plus(tables[2][:2]).values
    )


def test_tables_are_added_one_by_one_where_together_they_would_cost_more():
    rows, tables = Modulation(torch.randn(2, 6, 8), None), [torch.randn(6, 8) for _ in range(3)]
    assert rows.plus_all(tables).sums is None, "gradients would hold them all"
    with torch.no_grad():
        assert rows.plus_all(tables).sums is not None
        assert rows.plus_all([*tables, tables[0].to("meta")]).sums is None, "one is not here"
        assert rows.plus_all([*tables, None]).sums is None, "one is missing"
        assert Modulation(torch.randn(9, 6, 8), None).plus_all(tables).sums is None, "many levels"


def test_gradients_of_shared_levels_add_up():
    adaln, table = random_adaln(), torch.zeros(6, 8, requires_grad=True)
    timesteps = torch.tensor([[0.0, 0.7, 0.7, 0.7]])
    rows, _ = adaln(NoiseLevels.of_tokens(timesteps), 1000.0, torch.float32)
    spread(rows.plus(table).spread()[2]).sum().backward()
    torch.testing.assert_close(table.grad[2], torch.full((8,), 4.0))
    torch.testing.assert_close(adaln.linear.bias.grad.view(6, 8)[2], torch.full((8,), 4.0))


def test_new_modulation_is_silent():
    rows, _ = AdaLNSingle(8, 2)(NoiseLevels.of_items(torch.rand(3)), 1000.0, torch.float32)
    assert rows.values.abs().max() == 0


def test_names_are_the_official_ones():
    assert set(AdaLNSingle(4, 2).state_dict()) == {
        f"{layer}.{part}"
        for layer in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
        for part in ("weight", "bias")
    }


def test_modulation_scales_around_one():
    x, scale, shift = torch.randn(2, 3, 4), torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    torch.testing.assert_close(modulate(x, scale=scale, shift=shift), x * (1 + scale) + shift)


@pytest.mark.parametrize("items", [None, (0, 1), (1, 0, 1), (1,)])
def test_runs_follow_the_items_that_rows_are_spread_over(items):
    timesteps = torch.tensor([[0.0, 0.0, 0.7, 0.7], [0.2, 0.7, 0.7, 0.7]])
    with torch.no_grad():
        rows, _ = random_adaln()(NoiseLevels.of_tokens(timesteps), 1000.0, torch.float32)
        scale, shift, gate = rows.spread(SELF_ATTENTION, items)
    assert scale.lookup is shift.lookup is gate.lookup
    x = torch.ones(len(items or (0, 1)), 4, 8)
    with torch.no_grad():
        for place, (row,) in in_runs(len(x), scale):
            x[place] = row
    assert torch.equal(x, spread(scale))


def test_gated_residual_of_some_rows_takes_their_gates():
    timesteps = torch.tensor([[0.0, 0.0, 0.7], [0.2, 0.7, 0.7]])
    table = torch.randn(3, 8)
    with torch.no_grad():
        gate = TokenRows(table, NoiseLevels.of_tokens(timesteps).lookup)
        x, heard = torch.randn(4, 3, 8), torch.randn(2, 3, 8)
        expected = x.clone()
        expected[[0, 2]] += table[gate.lookup.row_of] * heard
        torch.testing.assert_close(add(x, (0, 2), heard, gate), expected)
