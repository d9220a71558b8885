"""Backgrounds and floors: complete, told apart by their colours, and free of surprises at any size."""

from dataclasses import replace

import pytest
import torch

from soundstage.data.world.backdrop import FLOOR_DRAWERS, SKIES, SPOTS, Grid, draw_backdrop
from soundstage.data.world.bounce import BACKGROUNDS, FLOOR_TOP, FLOORS, Bounce

CPU = torch.device("cpu")
SCENE = replace(Bounce.from_seed(0), flipped=False)
FLOOR_ROW = round(FLOOR_TOP * 64) + 1


def still(scenes, height=64, width=64):
    return draw_backdrop(scenes, height=height, width=width, device=CPU)


def floor_rows(floor, count=12):
    """Colour of each row of a floor, in several scenes."""
    scenes = [replace(Bounce.from_seed(seed), floor=floor) for seed in range(count)]
    return still(scenes)[:, :, FLOOR_ROW:].mean(-1)  # (count, 3, rows)


def test_every_floor_and_background_can_be_drawn():
    assert set(FLOOR_DRAWERS) == set(FLOORS)
    assert set(SKIES) == set(BACKGROUNDS)
    assert set(SPOTS) <= set(BACKGROUNDS)


def test_the_floor_takes_the_lower_fifth_to_quarter():
    assert 0.20 <= 1 - FLOOR_TOP <= 0.25


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("floor", FLOORS)
def test_values_stay_in_range_with_any_jitter(background, floor):
    bright = replace(SCENE, background=background, floor=floor, tint=(0.04, 0.04, 0.04), shade=1.06)
    dark = replace(bright, tint=(-0.04, -0.04, -0.04), shade=0.92, texture=0.99)
    pictures = still([bright, dark])
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_floors_are_told_apart_by_their_rows_of_colour():
    means = {floor: floor_rows(floor).mean(0) for floor in FLOORS}
    for floor in FLOORS:
        for sample in floor_rows(floor):
            distances = {name: float((sample - mean).norm()) for name, mean in means.items()}
            assert min(distances, key=distances.get) == floor


def test_floors_have_the_colour_of_their_material():
    red, green, blue = floor_rows("wood").mean((0, 2))
    assert red > 1.3 * green > 1.3 * blue  # brown
    metal = floor_rows("metal").mean((0, 2))
    assert metal.max() - metal.min() < 0.08  # grey
    red, green, blue = floor_rows("glass").mean((0, 2))
    assert min(green, blue) > red + 0.05  # cyan
    skin, shell = floor_rows("drum")[..., 3].mean(0), floor_rows("drum")[..., -1].mean(0)
    assert skin.min() > 0.5
    assert shell[0] > 2 * shell[2]  # cream above, red below


def test_glass_lets_the_background_through():
    day, night = (replace(SCENE, floor="glass", background=name) for name in ("sky", "night"))
    rows = still([day, night])[:, :, 54:56]
    assert (rows[0] - rows[1]).mean() > 0.05
    opaque = still([replace(day, floor="wood"), replace(night, floor="wood")])[:, :, 54:56]
    assert torch.equal(opaque[0], opaque[1])


def test_metal_has_a_bright_line():
    rows = floor_rows("metal").mean((0, 1))
    assert rows.max() > 1.4 * rows.median()


def test_wood_has_dark_gaps_between_planks():
    row = still([replace(SCENE, floor="wood")])[0].mean(0)[-4]
    dark = row < 0.7 * row.median()
    gaps = int((dark & ~dark.roll(1)).sum())
    assert 3 <= gaps <= 8


def test_texture_moves_the_details_but_not_the_colours():
    for floor in FLOORS:
        scenes = [replace(SCENE, floor=floor, texture=value) for value in (0.1, 0.6)]
        first, second = still(scenes)
        assert not torch.equal(first, second)
        assert torch.allclose(first.mean((1, 2)), second.mean((1, 2)), atol=0.05)


def test_night_is_darker_than_day():
    night, day = still([replace(SCENE, background=name) for name in ("night", "sky")])[:, :, :40].mean(
        (1, 2, 3)
    )
    assert night < 0.4 * day


def test_a_flipped_scene_is_drawn_mirrored():
    plain, flipped = still([SCENE, replace(SCENE, flipped=True)])
    assert torch.equal(plain.flip(-1), flipped)


def test_the_grid_counts_in_picture_heights():
    grid = Grid.of(4, 8, CPU)
    assert grid.x.tolist() == pytest.approx([0.125 + 0.25 * k for k in range(8)])
    assert grid.y.flatten().tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])


@pytest.mark.parametrize("size", [(16, 16), (40, 100), (96, 72)])
def test_any_size_is_finite(size):
    height, width = size
    pictures = still([replace(SCENE, floor=floor) for floor in FLOORS], height, width)
    assert pictures.shape == (4, 3, height, width)
    assert torch.isfinite(pictures).all()
