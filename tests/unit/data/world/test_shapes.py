"""Outlines: symmetric, of the promised extent, true distances near the edge, and unlike each other."""

import pytest
import torch

from soundstage.data.world.bounce import SHAPES
from soundstage.data.world.shapes import SHAPE_DISTANCES

AXIS = torch.linspace(-1.3, 1.3, 521)
Y, X = torch.meshgrid(AXIS, AXIS, indexing="ij")
ALL = pytest.mark.parametrize("shape", list(SHAPE_DISTANCES))


def inside(shape):
    return SHAPE_DISTANCES[shape](X, Y) < 0


def test_every_shape_can_be_drawn():
    assert set(SHAPE_DISTANCES) == set(SHAPES)


@ALL
def test_a_shape_is_symmetric_left_to_right(shape):
    distance = SHAPE_DISTANCES[shape]
    assert torch.allclose(distance(X, Y), distance(-X, Y), atol=1e-5)


@ALL
def test_the_lowest_point_is_where_the_motion_puts_the_floor(shape):
    lowest = Y[inside(shape)].max()
    assert lowest == pytest.approx(SHAPES[shape], abs=0.01)


@ALL
def test_a_shape_fills_its_radius(shape):
    highest, widest = -Y[inside(shape)].min(), X[inside(shape)].max()
    assert 0.8 <= float(torch.maximum(highest, widest)) <= 1.12


@ALL
def test_distance_grows_by_one_per_radius_across_the_edge(shape):
    distance = SHAPE_DISTANCES[shape]
    step = float(AXIS[1] - AXIS[0])
    down, right = torch.gradient(distance(X, Y), spacing=step)
    slope = torch.sqrt(down**2 + right**2)[(distance(X, Y).abs() < 0.02)]
    assert slope.median() == pytest.approx(1.0, abs=0.05)


@ALL
def test_a_shape_differs_from_every_other(shape):
    for other in SHAPES:
        if other != shape:
            union, common = inside(shape) | inside(other), inside(shape) & inside(other)
            assert common.sum() / union.sum() < 0.85, other


def test_only_the_ring_has_a_hole():
    centre = torch.zeros(1)
    assert {shape for shape, distance in SHAPE_DISTANCES.items() if distance(centre, centre) > 0} == {"ring"}


def test_the_star_has_five_tips():
    angle = torch.linspace(0, 2 * torch.pi, 721)[:-1]
    tips = SHAPE_DISTANCES["star"](0.9 * torch.sin(angle), -0.9 * torch.cos(angle)) < 0
    starts = tips & ~tips.roll(1)
    assert starts.sum() == 5
