"""Rows: passes part where they differ, and layers take together what they treat alike."""

import pytest
import torch

from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.picking import of_items, take
from soundstage.models.transformer.rows import Row, Rows, add


def test_passes_part_where_they_are_treated_differently():
    rows = Rows.shared(num_items=1, num_passes=4)
    rows, origins = rows.part(lambda number: number == 0)
    assert rows.rows == (Row(0, (0,)), Row(0, (1, 2, 3)))
    assert origins == (0, 0)
    rows, origins = rows.part(lambda number: number == 2)
    assert rows.rows == (Row(0, (0,)), Row(0, (1, 3)), Row(0, (2,)))
    assert origins == (0, 1, 1)
    assert rows.of_pass(3) == (1,)


def test_items_of_a_pass_stay_behind_each_other():
    rows, origins = Rows.shared(2, 2).part(lambda number: number)
    assert rows.rows == (Row(0, (0,)), Row(1, (0,)), Row(0, (1,)), Row(1, (1,)))
    assert origins == (0, 1, 0, 1)
    assert rows.of_pass(1) == (2, 3)


def test_nothing_parts_without_a_difference():
    rows = Rows.shared(2, 3)
    assert rows.part(lambda _: "same") == (rows, (0, 1))


@pytest.mark.parametrize(("at_once", "portions"), [(None, [(0, 2), (1, 3)]), (1, [(0,), (2,), (1,), (3,)])])
def test_layers_take_rows_that_they_treat_alike(at_once: int | None, portions: list):
    rows = Rows(Rows.of_items(4).rows, at_once)
    assert [part.rows for part in rows.parts(lambda number: number % 2)] == portions


@pytest.mark.parametrize("rows", [(0, 1, 2), (1,), (0, 2), (2, 1)])
def test_rows_are_taken_in_order(rows: tuple):
    x = torch.arange(6.0).view(3, 2)
    assert torch.equal(take(x, rows), x[list(rows)])


def test_neighbouring_rows_are_not_copied():
    x = torch.zeros(3, 2)
    assert take(x, (1, 2)).data_ptr() == x[1:].data_ptr()
    assert of_items(x[:1], (0, 0, 0)).shape == (1, 2)
    assert torch.equal(of_items(torch.eye(2), (1, 0, 1)), torch.eye(2)[[1, 0, 1]])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [(0, 1, 2), (1,), (0, 2)])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_rows_are_added_to_in_place_only_without_gradients(rows: tuple, gated: bool, with_gradient: bool):
    x, heard, gate = torch.randn(3, 4, 2), torch.randn(len(rows), 4, 2), torch.randn(len(rows), 1, 2)
    before = x.clone()
    expected = x.clone()
    expected[list(rows)] += gate * heard if gated else heard
    with torch.set_grad_enabled(with_gradient):
        got = add(x, rows, heard, gate if gated else None)
    torch.testing.assert_close(got, expected)
    assert torch.equal(x, before) == with_gradient


def test_kept_values_are_made_once_and_anew_when_a_layer_changes():
    kept, layer, made = Kept(), torch.nn.Linear(2, 2), []

    def ask(*sources: object) -> list:
        return kept.get("value", sources, lambda: made.append(1) or torch.zeros(len(made)))

    assert len(ask(layer)) == len(ask(layer)) == 1
    with torch.no_grad():
        layer.weight.add_(1)
    assert len(ask(layer)) == 2
    layer.weight.data = layer.weight.data.clone()  # moved, not changed
    assert len(ask(layer)) == 2
    layer.weight = torch.nn.Parameter(torch.ones(2, 2))
    assert len(ask(layer)) == 3
    assert len(ask(torch.nn.Linear(2, 2))) == 4
    assert kept.num_bytes == 4 * (3 + 4)
