import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soundstage.core.errors import RequestError
from soundstage.media.placement import place, resize_frames

extents = st.integers(1, 70)


def noise(height, width, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


@given(extents, extents, extents, extents, st.sampled_from(["cover", "pad"]))
def test_any_picture_fits_any_canvas(height, width, rows, columns, fit):
    placement = place((height, width), (rows, columns), fit)
    assert placement.apply(noise(height, width, 1)).shape == (1, rows, columns, 3)
    inside = placement.inside
    if fit == "cover":
        assert inside == (slice(0, rows), slice(0, columns))
    else:  # all of it is seen, and it touches two opposite borders
        assert placement.visible == (slice(0, height), slice(0, width))
        assert inside[0] == slice(0, rows) or inside[1] == slice(0, columns)


@given(extents, extents, st.integers(0, 40), st.integers(0, 40))
def test_extending_is_undone_exactly(height, width, more_rows, more_columns):
    frames = noise(height, width)
    placement = place((height, width), (height + more_rows, width + more_columns), "extend")
    assert torch.equal(placement.undo(placement.apply(frames)), frames)


def test_extending_repeats_the_edges():
    frames = noise(4, 6)
    extended = place((4, 6), (8, 6), "extend").apply(frames)
    assert torch.equal(extended[:, 0], frames[:, 0])
    assert torch.equal(extended[:, 7], frames[:, 3])


def test_padding_is_black_and_keeps_the_shape():
    white = torch.full((1, 10, 20, 3), 255, dtype=torch.uint8)
    padded = place((10, 20), (40, 40), "pad").apply(white)[0, ..., 0]
    assert (padded[10:30] == 255).all()
    assert (padded[:10] == 0).all()
    assert (padded[30:] == 0).all()


def test_padding_is_undone_to_the_size_of_before():
    placement = place((10, 20), (64, 64), "pad")
    smooth = resize_frames(noise(2, 3, 1), (10, 20))
    back = placement.undo(placement.apply(smooth))
    assert back.shape == smooth.shape
    assert (back.int() - smooth.int()).abs().float().mean() < 4


def test_the_anchor_says_which_part_is_kept():
    frames = torch.zeros(1, 10, 30, 3, dtype=torch.uint8)
    frames[:, :, :10, 0], frames[:, :, 20:, 2] = 255, 255  # red left, blue right
    left = place((10, 30), (10, 10), "cover", (0.5, 0.0)).apply(frames)
    right = place((10, 30), (10, 10), "cover", (0.5, 1.0)).apply(frames)
    assert (left[..., 0] == 255).all()
    assert (right[..., 2] == 255).all()
    assert place((10, 30), (10, 10)).visible == (slice(0, 10), slice(10, 20))


def test_fine_stripes_become_grey_instead_of_other_stripes():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, ::2] = 255
    small = resize_frames(stripes, (16, 64)).float()
    assert (small[:, 1:-1] - 127.5).abs().max() < 4


@pytest.mark.parametrize(
    ("size", "fit", "anchor", "message"),
    [
        ((0, 5), "cover", (0.5, 0.5), "6x4 pixels into 5x0; sizes must be positive"),
        ((5, 5), "cover", (0.5, 2.0), "outside"),
        ((3, 6), "extend", (0.5, 0.5), "cannot extend 6x4 pixels to 6x3; the least is 6x4"),
    ],
)
def test_impossible_placements_are_named(size, fit, anchor, message):
    with pytest.raises(RequestError, match=message):
        place((4, 6), size, fit, anchor)
