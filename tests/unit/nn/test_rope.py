"""Rotary position embedding: the ladder, its share per head, and what rotation preserves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundstage.nn.rope import Rope, apply_rope, frequency_ladder, rope_table

KINDS = ("split", "interleaved")


def test_ladder_spans_both_ends():
    ladder = frequency_ladder(5, 10_000.0)
    torch.testing.assert_close(ladder[[0, -1]], torch.tensor([math.pi / 2, 10_000 * math.pi / 2]))
    torch.testing.assert_close(ladder[1:] / ladder[:-1], torch.full((4,), 10.0))


def test_ladder_of_the_video_stream_starts_as_published():
    expected = torch.tensor([1.5708, 1.5922, 1.6139])
    torch.testing.assert_close(frequency_ladder(682, 10_000.0)[:3], expected, atol=1e-4, rtol=0)


def test_ladder_is_float32_whatever_it_is_computed_in():
    exact, rounded = frequency_ladder(682, 10_000.0), frequency_ladder(682, 10_000.0, "float32")
    assert exact.dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(exact, rounded, rtol=1e-5, atol=0)
    assert not torch.equal(exact, rounded)


def test_heads_share_one_ladder():
    angle_one = rope_table(torch.full((1, 1, 1), 20.0), [20], 32, heads=4)  # the position that maps to 1
    frequencies = frequency_ladder(16, 10_000.0)
    torch.testing.assert_close(angle_one.cos.flatten(), frequencies.cos())
    assert angle_one.cos.shape == (1, 4, 1, 4)


def test_axes_alternate_along_the_ladder():
    positions = torch.tensor([[[20.0], [0.0], [0.0]]])  # time at +1, the other axes at -1
    rope = rope_table(positions, [20, 2048, 2048], 24, heads=1)
    ladder = frequency_ladder(4, 10_000.0)
    torch.testing.assert_close(rope.sin[0, 0, 0, 0::3], ladder.sin())
    torch.testing.assert_close(rope.sin[0, 0, 0, 1::3], -ladder.sin())


def test_what_does_not_divide_stands_still_in_the_first_head():
    rope = rope_table(torch.rand(1, 3, 5), [20, 2048, 2048], 32, heads=4)  # 5 per axis leave 1 of 16 pairs
    assert torch.all(rope.cos[:, 0, :, 0] == 1)
    assert torch.all(rope.sin[:, 0, :, 0] == 0)


def test_published_width_has_published_values():
    middle = torch.tensor([(0.0416667 + 0.375) / 2, 48.0, 80.0])[None, :, None]
    rope = rope_table(middle, [20, 2048, 2048], 4096, heads=32)
    expected = torch.tensor([1, 1, 0.0327, 0.0736, 0.1224])
    torch.testing.assert_close(rope.cos[0, 0, 0, :5], expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(rope.cos[0, 1, 0, :2], torch.tensor([-0.3213, -0.4551]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rotation_keeps_the_length_of_vectors(kind: str):
    x = torch.randn(2, 5, 32)
    rotated = apply_rope(x, rope_table(20 * torch.rand(2, 3, 5), [20, 20, 20], 32, 4, kind=kind))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(first=st.floats(0, 20), second=st.floats(0, 20), shift=st.floats(0, 20))
def test_scores_depend_on_distance_alone(kind: str, first: float, second: float, shift: float):
    """Queries and keys moved together keep their score. A short ladder keeps rounding of the angles small."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16, generator=generator)

    def score(offset: float) -> torch.Tensor:
        tables = [
            rope_table(torch.full((1, 1, 1), position + offset), [20], 16, 1, theta=4.0, kind=kind)
            for position in (first, second)
        ]
        return (apply_rope(q, tables[0]) * apply_rope(k, tables[1])).sum()

    torch.testing.assert_close(score(0), score(shift), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_table_serves_the_whole_batch(kind: str):
    x = torch.randn(3, 5, 32)
    positions = torch.rand(1, 3, 5)
    one = rope_table(positions, [20, 20, 20], 32, 4, kind=kind)
    each = rope_table(positions.expand(3, -1, -1), [20, 20, 20], 32, 4, kind=kind)
    torch.testing.assert_close(apply_rope(x, one), apply_rope(x, each))


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_vectors_are_rotated_by_float32_tables(kind: str):
    rope = rope_table(torch.rand(1, 1, 5), [20], 32, 4, kind=kind)
    x = torch.randn(1, 5, 32).bfloat16()
    rotated = apply_rope(x, rope)
    assert rope.cos.dtype == torch.float32
    assert rotated.dtype == torch.bfloat16
    torch.testing.assert_close(rotated, apply_rope(x.float(), rope).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [1, 3])
def test_numbers_of_a_token_lie_side_by_side(kind: str, axes: int):
    """As the kernels read them: with one axis they would otherwise lie token by token."""
    table = rope_table(torch.rand(2, axes, 5), (20, 32, 32)[:axes], 48, 4, kind=kind)
    assert table.cos.stride(-1) == table.sin.stride(-1) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_a_row_serves_as_many_tokens_as_there_are_fewer_rows(kind, wants_gradient):
    rows = rope_table(torch.tensor([[[0.5, 2.0, 7.0]]]), [20], 16, heads=2, kind=kind)
    full = Rope(*(table.repeat_interleave(4, -2) for table in rows))
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(wants_gradient):
        assert torch.equal(apply_rope(x, rows), apply_rope(x, full))
        assert not torch.equal(apply_rope(x, rows), apply_rope(x.flip(1), full).flip(1))
