"""Triton's kernels against plain PyTorch: on a GPU as they are, without one by Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from soundstage.nn.kernels import fused, fused_attention, plain
from soundstage.nn.kernels.lookup import Lookup, TokenRows, spread
from soundstage.nn.kernels.plain import NormRope, ScaleShift
from soundstage.nn.rope import Rope, rope_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Sums are taken in another order and products may be fused: one unit in the last place of what is rounded.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DTYPES = list(BOUNDS)


def draw(*shape, dtype=torch.float32, seed=0, scale=1.0):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return noise.to(DEVICE, dtype)


def assert_as_plain(got, wanted, dtype):
    """Hold every number to a share of its own size, and nearly all of them to equality."""
    assert got.dtype == wanted.dtype == dtype
    assert got.shape == wanted.shape
    error = (got.float() - wanted.float()).abs()
    assert bool((error <= BOUNDS[dtype] * wanted.float().abs().clamp(min=1.0)).all()), float(error.max())
    if dtype != torch.float32:
        assert float((error == 0).float().mean()) > 0.98


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ["item", "token", "shared"])
@pytest.mark.parametrize("dim", [24, 64])
def test_norm_modulate_is_as_plain(dtype, rows, dim):
    shape = {"item": (2, 1), "token": (2, 5), "shared": (1, 1)}[rows]
    x, scale, shift = (
        draw(2, 5, dim, dtype=dtype, scale=3),
        *(draw(*shape, dim, dtype=dtype, seed=seed, scale=0.5) for seed in (1, 2)),
    )
    got = fused.norm_modulate(x, scale, shift, 1e-6)
    assert_as_plain(got, plain.norm_modulate(x, scale, shift, 1e-6), dtype)


def test_norm_modulate_reads_rows_of_a_table_where_they_are():
    x, table = draw(2, 5, 24), draw(2, 6, 24, seed=1)
    shift, scale, _ = (row.unsqueeze(1) for row in table[:, :3].unbind(1))
    assert shift.stride(0) == 6 * 24
    got = fused.norm_modulate(x, scale, shift, 1e-6)
    assert_as_plain(got, plain.norm_modulate(x, scale, shift, 1e-6), torch.float32)


def test_norm_modulate_of_a_silent_token_is_the_shift():
    x = draw(1, 2, 24)
    x[:, 1] = 0
    scale, shift = draw(1, 1, 24, seed=1), draw(1, 1, 24, seed=2)
    assert torch.equal(fused.norm_modulate(x, scale, shift, 1e-6)[:, 1], shift[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [(2, 1), (2, 5), (1, 1)], ids=["item", "token", "shared"])
def test_norm_modulate_twice_is_as_plain(dtype, rows):
    x = draw(2, 5, 24, dtype=dtype, scale=3)
    modulation = draw(*rows, 4, 24, dtype=dtype, seed=1, scale=0.5)  # rows side by side, as tables have them
    first, second = ScaleShift(*modulation.unbind(2)[:2]), ScaleShift(*modulation.unbind(2)[2:])
    got = fused.norm_modulate_twice(x, first, second, 1e-6)
    wanted = plain.norm_modulate_twice(x, first, second, 1e-6)
    for one, other in zip(got, wanted, strict=True):
        assert_as_plain(one, other, dtype)
    assert not torch.equal(*got)


def test_norm_modulate_twice_takes_rows_of_different_kinds():
    x, per_token, shared = draw(2, 5, 24), draw(2, 5, 24, seed=1), draw(1, 1, 24, seed=2)
    first, second = ScaleShift(per_token, shared), ScaleShift(shared, per_token)
    got = fused.norm_modulate_twice(x, first, second, 1e-6)
    for one, rows in zip(got, (first, second), strict=True):
        assert_as_plain(one, plain.norm_modulate(x, *rows, 1e-6), torch.float32)


def table(kind, items, num_tokens, dim, heads, axes=3):
    start = torch.arange(items * axes * num_tokens, dtype=torch.float32).view(items, axes, num_tokens) % 17
    cos, sin = rope_table(start, (20, 32, 32)[:axes], dim, heads, kind=kind)
    return Rope(cos.to(DEVICE), sin.to(DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["split", "interleaved"])
@pytest.mark.parametrize("items", [1, 2], ids=["one_table", "table_per_item"])
@pytest.mark.parametrize("axes", [1, 3], ids=["seconds", "space_and_time"])
def test_norm_rope_is_as_plain(dtype, kind, items, axes):
    rope = table(kind, items, 5, 48, 4, axes)
    x, weight = draw(2, 5, 48, dtype=dtype, scale=3), 1 + draw(48, dtype=dtype, seed=1, scale=0.2)
    got = fused_attention.norm_rope(x, weight, rope, 1e-6)
    assert_as_plain(got, plain.norm_rope(x, weight, rope, 1e-6), dtype)


@pytest.mark.parametrize("kind", ["split", "interleaved"])
def test_norm_rope_takes_tables_however_they_lie(kind):
    rope = table(kind, 2, 5, 48, heads=4)
    turned = Rope(*(part.transpose(-1, -2).contiguous().transpose(-1, -2) for part in rope))
    assert turned.cos.stride(-1) == 5
    x, weight = draw(2, 5, 48), torch.ones(48, device=DEVICE)
    assert torch.equal(
        fused_attention.norm_rope(x, weight, turned, 1e-6), fused_attention.norm_rope(x, weight, rope, 1e-6)
    )


@pytest.mark.parametrize("kind", ["split", "interleaved"])
@pytest.mark.parametrize("items", [1, 2], ids=["one_table", "table_per_item"])
def test_norm_rope_takes_tables_with_a_row_for_several_tokens(kind, items):
    rows, x, weight = table(kind, items, 2, 48, heads=4), draw(2, 6, 48), torch.ones(48, device=DEVICE)
    full = Rope(*(part.repeat_interleave(3, -2) for part in rows))
    wanted = fused_attention.norm_rope(x, weight, full, 1e-6)
    assert torch.equal(fused_attention.norm_rope(x, weight, rows, 1e-6), wanted)
    assert_as_plain(wanted, plain.norm_rope(x, weight, rows, 1e-6), torch.float32)
    other = draw(2, 4, 48, seed=1)
    for ours in (NormRope(x, weight, rows), NormRope(other, weight, rows)):
        for theirs in (NormRope(x, weight, full), NormRope(other, weight, rows)):
            got = fused_attention.norm_rope_both(ours, theirs, 1e-6)
            for one, given in zip(got, (ours, theirs), strict=True):
                assert_as_plain(one, plain.norm_rope(*given, 1e-6), torch.float32)


@pytest.mark.parametrize("kind", ["split", "interleaved"])
def test_norm_rope_takes_slices_of_a_joint_projection(kind):
    joint, weight = draw(2, 5, 3 * 48), 1 + draw(48, seed=1, scale=0.2)
    keys = joint[..., 48:96]
    rope = table(kind, 1, 5, 48, heads=4)
    got = fused_attention.norm_rope(keys, weight, rope, 1e-6)
    assert got.is_contiguous()
    assert_as_plain(got, plain.norm_rope(keys.clone(), weight, rope, 1e-6), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["split", "interleaved"])
@pytest.mark.parametrize("counts", [(5, 5), (5, 2), (2, 5)], ids=str)
def test_norm_rope_both_is_as_plain_over_a_joint_projection(dtype, kind, counts):
    """Queries and keys lie beside values, and are written over where they lie."""
    joints = [draw(2, n, 48 + 48 + 16, dtype=dtype, seed=n, scale=3) for n in counts]
    weights = [1 + draw(48, dtype=dtype, seed=s, scale=0.2) for s in (1, 2)]
    ropes = [table(kind, items, n, 48, heads=4) for items, n in zip((1, 2), counts, strict=True)]
    parts = joints[0][..., 16:64], joints[1][..., 64:]
    given = [NormRope(*one) for one in zip(parts, weights, ropes, strict=True)]
    wanted = plain.norm_rope_both(*(one._replace(x=one.x.clone()) for one in given), 1e-6)
    rest = joints[0][..., :16].clone()
    for one, other, before in zip(fused_attention.norm_rope_both(*given, 1e-6), wanted, parts, strict=True):
        assert_as_plain(one, other, dtype)
        assert one.data_ptr() != before.data_ptr()
    got = fused_attention.norm_rope_both(*given, 1e-6, in_place=True)
    for one, other, before in zip(got, wanted, parts, strict=True):
        assert_as_plain(one, other, dtype)
        assert one.data_ptr() == before.data_ptr()
    assert torch.equal(joints[0][..., :16], rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_heads_is_as_plain_with_logits_of_a_joint_projection(dtype):
    heard, logits = draw(2, 5, 48, dtype=dtype), draw(2, 5, 4 + 48, dtype=dtype, seed=1, scale=3)[..., :4]
    same, before = fused_attention.gate_heads(heard.clone(), torch.zeros_like(logits)), heard.clone()
    assert torch.equal(same, before)
    wanted, got = plain.gate_heads(heard.clone(), logits), fused_attention.gate_heads(heard, logits)
    assert_as_plain(got, wanted, dtype)
    assert got.data_ptr() == heard.data_ptr(), "no room of its own"


def test_norm_rope_keeps_the_length_of_a_token():
    x, weight = draw(1, 5, 48), torch.ones(48, device=DEVICE)
    turned = fused_attention.norm_rope(x, weight, table("split", 1, 5, 48, heads=4), 0.0)
    assert float((turned.square().mean(-1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [(2, 1), (2, 5), (1, 1)], ids=["item", "token", "shared"])
@pytest.mark.parametrize("in_place", [False, True])
def test_gate_add_is_as_plain(dtype, rows, in_place):
    x, update = draw(2, 5, 24, dtype=dtype), draw(2, 5, 24, dtype=dtype, seed=1)
    gate, before = draw(*rows, 24, dtype=dtype, seed=2), x.clone()
    wanted = plain.gate_add(x, gate, update)
    got = fused.gate_add(x, gate, update, in_place=in_place)
    assert_as_plain(got, wanted, dtype)
    assert (got.data_ptr() == x.data_ptr()) == in_place
    assert in_place or torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row_of", [[[0, 0, 1, 1, 1]], [[0, 2, 1, 2, 0], [1, 1, 1, 2, 2]]], ids=str)
def test_rows_are_looked_up_where_they_are_used(monkeypatch, dtype, row_of):
    lookup = Lookup(torch.tensor(row_of, device=DEVICE), None)
    rows = [TokenRows(row, lookup) for row in draw(3, 4, 24, dtype=dtype, seed=1, scale=0.5).unbind(1)]
    full = [spread(row) for row in rows]
    x, update = draw(2, 5, 24, dtype=dtype, scale=3), draw(2, 5, 24, dtype=dtype, seed=2)
    monkeypatch.setattr(fused, "spread", lambda _: pytest.fail("a row per token was made"))
    got = fused.norm_modulate(x, *rows[:2], 1e-6)
    assert_as_plain(got, plain.norm_modulate(x, *full[:2], 1e-6), dtype)
    both = fused.norm_modulate_twice(x, ScaleShift(*rows[:2]), ScaleShift(*rows[2:]), 1e-6)
    for one, other in zip(both, (full[:2], full[2:]), strict=True):
        assert_as_plain(one, plain.norm_modulate(x, *other, 1e-6), dtype)
    assert_as_plain(fused.gate_add(x, rows[2], update), plain.gate_add(x, full[2], update), dtype)


def test_rows_of_different_lookups_are_spread():
    one, other = (Lookup(torch.tensor([row_of], device=DEVICE), None) for row_of in ([0, 1], [1, 0]))
    x, table = draw(1, 2, 24), draw(2, 24, seed=1)
    rows = TokenRows(table, one), TokenRows(table, other)
    wanted = plain.norm_modulate(x, spread(rows[0]), spread(rows[1]), 1e-6)
    assert_as_plain(fused.norm_modulate(x, *rows, 1e-6), wanted, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantise_rows_is_as_plain(dtype):
    x = draw(3, 5, 40, dtype=dtype, scale=7)
    x[0, 0] = 0
    got, wanted = fused.quantise_rows(x), plain.quantise_rows(x)
    assert float((got.scales / wanted.scales - 1).abs().max()) < 1e-6
    assert torch.equal(got.values.float(), wanted.values.float())


def test_quantise_rows_does_not_hide_what_is_not_a_number():
    x = draw(3, 8)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    for quantised in (fused.quantise_rows(x), plain.quantise_rows(x)):
        back = quantised.values.float() * quantised.scales
        assert bool(back[:2].isnan().all())
        assert bool(back[2].isfinite().all())


def test_kernels_run_where_their_tokens_are(monkeypatch):
    """The current device may be another one: `--device cuda:1` leaves cuda:0 current."""
    where, of = [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: where.append(x) or of(x))
    x, weight = draw(1, 2, 48), draw(48, seed=1)
    rows, rope = draw(1, 1, 48, seed=2), table("split", 1, 2, 48, heads=4)
    fused.norm_modulate(x, rows, rows, 1e-6)
    fused.norm_modulate_twice(x, ScaleShift(rows, rows), ScaleShift(rows, rows), 1e-6)
    fused_attention.norm_rope(x, weight, rope, 1e-6)
    fused_attention.norm_rope_both(NormRope(x, weight, rope), NormRope(x, weight, rope), 1e-6)
    fused_attention.gate_heads(x, x[..., :4])
    fused.gate_add(x, rows, x)
    fused.quantise_rows(x)
    assert len(where) == 7
    assert all(one.device == x.device and one.data_ptr() == x.data_ptr() for one in where)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_kernels_run_on_a_device_that_is_not_the_current_one():
    x = draw(1, 2, 48).to("cuda:1")
    assert torch.equal(fused.gate_add(x, x, x), plain.gate_add(x, x, x))


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [2048, 4096])
def test_real_widths_on_a_gpu(dim):
    dtype = torch.bfloat16
    x, rows = draw(1, 300, dim, dtype=dtype), [draw(1, 1, dim, dtype=dtype, seed=s) for s in (1, 2, 3)]
    assert_as_plain(fused.norm_modulate(x, *rows[:2], 1e-6), plain.norm_modulate(x, *rows[:2], 1e-6), dtype)
    ways = ScaleShift(*rows[:2]), ScaleShift(*rows[1:])
    both = fused.norm_modulate_twice(x, *ways, 1e-6)
    for got_one, way in zip(both, ways, strict=True):
        assert_as_plain(got_one, plain.norm_modulate(x, *way, 1e-6), dtype)
    assert_as_plain(fused.gate_add(x, rows[0], x), plain.gate_add(x, rows[0], x), dtype)
    rope, weight = table("split", 1, 300, dim, heads=32), rows[2].flatten()
    assert_as_plain(
        fused_attention.norm_rope(x, weight, rope, 1e-6), plain.norm_rope(x, weight, rope, 1e-6), dtype
    )
    given = [NormRope(one, weight, rope) for one in (x, 2 * x)]
    both = fused_attention.norm_rope_both(*given, 1e-6), plain.norm_rope_both(*given, 1e-6)
    for got_one, wanted_one in zip(*both, strict=True):
        assert_as_plain(got_one, wanted_one, dtype)
    logits = x[..., :32].clone()
    gated = fused_attention.gate_heads(x.clone(), logits), plain.gate_heads(x.clone(), logits)
    assert_as_plain(*gated, dtype)
    got, wanted = fused.quantise_rows(x), plain.quantise_rows(x)
    assert float((got.values.float() == wanted.values.float()).float().mean()) > 0.999
