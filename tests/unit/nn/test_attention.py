"""Attention: against a written-out formula, and what its options promise."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from live_bytes import LiveBytes
from soundstage.nn import attention as attention_module
from soundstage.nn import linear
from soundstage.nn.attention import Attention
from soundstage.nn.attention_parts import AttentionParts, Part
from soundstage.nn.kernels.choice import TorchKernels
from soundstage.nn.norms import rms_norm
from soundstage.nn.rope import apply_rope, rope_table


def random_attention(*args: int, **kwargs: object) -> Attention:
    torch.manual_seed(0)
    attention = Attention(*args, **kwargs)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return attention


def written_out(attention: Attention, x: Tensor, context: Tensor, rope=None, context_rope=None, bias=None):
    """Attend head by head, query by query."""
    q = rms_norm(attention.to_q(x), 1e-6) * attention.q_norm.weight
    k = rms_norm(attention.to_k(context), 1e-6) * attention.k_norm.weight
    v = attention.to_v(context)
    q = q if rope is None else apply_rope(q, rope)
    k = k if context_rope is None else apply_rope(k, context_rope)
    heads = []
    for q_head, k_head, v_head in zip(*(t.chunk(attention.heads, dim=-1) for t in (q, k, v)), strict=True):
        scores = q_head @ k_head.transpose(1, 2) / math.sqrt(q_head.shape[-1])
        heads.append((scores if bias is None else scores + bias[:, 0]).softmax(-1) @ v_head)
    if attention.to_gate_logits is not None:
        gates = 2 * torch.sigmoid(attention.to_gate_logits(x))
        heads = [head * gates[..., i : i + 1] for i, head in enumerate(heads)]
    return attention.to_out(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("gated", [False, True])
def test_self_attention_equals_the_formula(gated: bool):
    attention = random_attention(16, heads=4, head_dim=6, gated=gated)
    x = torch.randn(2, 5, 16)
    rope = rope_table(torch.rand(1, 1, 5) * 9, [20], 24, 4)
    bias = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(
        attention(x, rope=rope, bias=bias), written_out(attention, x, x, rope, rope, bias)
    )


@pytest.mark.parametrize("gated", [False, True])
def test_cross_attention_equals_the_formula(gated: bool):
    attention = random_attention(16, 10, heads=2, head_dim=8, out_dim=7, gated=gated)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 9, 10)
    rope, context_rope = (rope_table(torch.rand(1, 1, n) * 9, [20], 16, 2) for n in (5, 9))
    got = attention(x, context, rope=rope, context_rope=context_rope)
    assert got.shape == (2, 5, 7)
    torch.testing.assert_close(got, written_out(attention, x, context, rope, context_rope))


def test_queries_and_keys_are_normed_over_all_heads_together():
    attention = random_attention(16, heads=4, head_dim=4)
    assert attention.q_norm.weight.shape == attention.k_norm.weight.shape == (16,)


def test_zero_gate_logits_change_nothing():
    gated = random_attention(16, heads=4, head_dim=4, gated=True)
    torch.nn.init.zeros_(gated.to_gate_logits.weight)
    torch.nn.init.zeros_(gated.to_gate_logits.bias)
    x = torch.randn(1, 5, 16)
    with_gates = gated(x)
    gated.to_gate_logits = None
    torch.testing.assert_close(with_gates, gated(x))


def test_value_passthrough_projects_gated_values():
    attention = random_attention(16, heads=4, head_dim=4, gated=True)
    x = torch.randn(2, 5, 16)
    gates = 2 * torch.sigmoid(attention.to_gate_logits(x)).repeat_interleave(4, dim=-1)
    torch.testing.assert_close(
        attention(x, value_passthrough=True), attention.to_out(attention.to_v(x) * gates)
    )


def test_value_passthrough_computes_no_scores(monkeypatch: pytest.MonkeyPatch):
    attention = random_attention(16, heads=4, head_dim=4)
    monkeypatch.setattr(attention, "mix", None)
    attention(torch.randn(2, 5, 16), value_passthrough=True)


@pytest.mark.parametrize("gated", [False, True])
def test_kept_keys_and_values_give_the_same_result(gated: bool):
    attention = random_attention(16, 10, heads=2, head_dim=8, gated=gated)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 9, 10)
    kept, (query, logits) = attention.project_context(context), attention.project_query(x)
    torch.testing.assert_close(attention.combine(attention.mix(query, kept), logits), attention(x, context))


@dataclass
class Made:
    """A bias that is not there before it is asked for."""

    bias: Tensor

    def make(self) -> Tensor:
        return self.bias


@pytest.mark.parametrize("made", [False, True])
def test_parts_attend_to_the_keys_they_name(made: bool):
    attention = random_attention(16, heads=4, head_dim=4)
    x, bias = torch.randn(2, 6, 16), torch.randn(2, 1, 6, 6)
    hidden = torch.finfo(torch.float32).min
    bias[:, :, :3, 2] = hidden  # the first part sees all but one key, in two ranges
    bias[:, :, 3:5, :4] = hidden  # the second the last two, all alike
    bias[:, :, 3:5, 4:] = 0
    own = bias[:, :, :3, [0, 1, 3, 4, 5]]
    parts = AttentionParts(
        parts=(
            Part(start=0, stop=3, keys=((0, 2), (3, 6)), bias=Made(own) if made else own),
            Part(start=3, stop=5, keys=((4, 6),)),
            Part(start=5, stop=6, bias=bias[:, :, 5:]),
        )
    )
    torch.testing.assert_close(attention(x, bias=parts), attention(x, bias=bias))


def test_one_part_of_everything_is_the_plain_call():
    attention = random_attention(16, heads=4, head_dim=4)
    x = torch.randn(2, 6, 16)
    assert torch.equal(attention(x, bias=AttentionParts(parts=(Part(start=0, stop=6),))), attention(x))


def test_bias_over_keys_alone_serves_all_queries():
    attention = random_attention(16, heads=4, head_dim=4)
    x = torch.randn(2, 5, 16)
    bias = torch.zeros(2, 1, 1, 5)
    bias[0, ..., 3:] = torch.finfo(torch.float32).min
    torch.testing.assert_close(attention(x, bias=bias)[1], attention(x)[1])
    torch.testing.assert_close(attention(x, bias=bias)[0, :3], attention(x[:1, :3])[0])


def test_output_projection_keeps_its_place_in_a_sequence():
    names = set(Attention(8, heads=2, head_dim=4, gated=True).state_dict())
    assert {"to_out.0.weight", "to_out.0.bias", "to_gate_logits.weight", "q_norm.weight"} <= names


def test_biases_can_be_left_out():
    names = Attention(8, heads=2, head_dim=4, bias=False).state_dict()
    assert not [name for name in names if name.endswith("bias")]


def test_low_precision_weights_give_low_precision_results():
    attention = random_attention(16, heads=4, head_dim=4).bfloat16()
    rope = rope_table(torch.rand(1, 1, 5), [20], 16, 4)
    assert attention(torch.randn(1, 5, 16).bfloat16(), rope=rope).dtype == torch.bfloat16


@pytest.mark.parametrize("joined", [False, True])
@torch.no_grad()
def test_keys_and_values_are_gone_when_heads_are_projected_out(monkeypatch: pytest.MonkeyPatch, joined: bool):
    monkeypatch.setattr(attention_module, "_is_on_cpu", lambda _: False)
    attention = Attention(64, heads=4, head_dim=16, gated=True)
    if joined:
        attention.join_projections()
    x = torch.randn(1, 512, 64)
    alive = []
    with LiveBytes().ignore(attention) as live:
        attention.to_out[0].register_forward_pre_hook(lambda *_: alive.append(live.now / x.nbytes))
        attention(x)
    assert alive[0] < 2.5  # the tokens and what was heard, gated; queries, keys and values were 3 more


@pytest.mark.parametrize("context_dim", [None, 128])
@torch.no_grad()
def test_on_a_cpu_joining_changes_no_bit(context_dim: int | None):
    """Blocks that stay on disk are not joined, and give the same clip."""
    attention = random_attention(192, context_dim, heads=4, head_dim=48, gated=True)  # as in the model inside
    x = torch.randn(1, 208, 192)
    context = None if context_dim is None else torch.randn(1, 51, context_dim)
    apart = attention(x, context)
    attention.join_projections()
    assert torch.equal(attention(x, context), apart)


@pytest.mark.parametrize("context_dim", [None, 10])
@torch.no_grad()
def test_gates_are_asked_for_together_with_queries(monkeypatch: pytest.MonkeyPatch, context_dim: int | None):
    attention = random_attention(16, context_dim, heads=4, head_dim=4, gated=True)
    x = torch.randn(2, 5, 16)
    context = None if context_dim is None else torch.randn(2, 9, context_dim)
    expected, products, plain = attention(x, context), [], linear._linear
    attention.join_projections()
    monkeypatch.setattr(attention_module, "_is_on_cpu", lambda _: False)
    monkeypatch.setattr(linear, "_linear", lambda *a: products.append(a[1].shape[0]) or plain(*a))
    torch.testing.assert_close(attention(x, context), expected)
    assert products == ([4 + 3 * 16, 16] if context is None else [4 + 16, 2 * 16, 16])


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 48), (32, 128)])  # the model inside; the released ones
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_attention_reads_begins_where_its_kernels_can_read(
    monkeypatch: pytest.MonkeyPatch, heads: int, head_dim: int, dtype: torch.dtype
):
    with torch.device("meta"):
        attention = Attention(64, heads=heads, head_dim=head_dim, gated=True).to(dtype)
        x = torch.empty(1, 5, 64, dtype=dtype)
    attention.join_projections()
    read: list[torch.Tensor] = []
    monkeypatch.setattr(Attention, "mix", lambda _, q, kv, **__: read.extend((q, *kv)) or torch.empty_like(q))
    attention(x)
    assert len(read) == 3
    for part in read:
        assert part.storage_offset() * part.element_size() % 16 == 0
        assert part.stride(1) * part.element_size() % 16 == 0


@torch.no_grad()
def test_queries_that_somebody_looks_at_are_not_rotated_in_place():
    attention = random_attention(16, heads=2, head_dim=8)

    class Recording(TorchKernels):
        def norm_rope_both(self, queries, keys, eps, *, in_place: bool = False):
            seen.append(in_place)
            return super().norm_rope_both(queries, keys, eps, in_place=in_place)

    seen: list[bool] = []
    attention.kernels = Recording()
    x, rope = torch.randn(1, 5, 16), rope_table(torch.rand(1, 1, 5), [20], 16, 2)
    attention(x, rope=rope)
    attention.to_k.register_forward_hook(lambda *_: None)
    attention(x, rope=rope)
    assert seen == [True, False]


@torch.no_grad()
def test_values_that_somebody_looks_at_are_not_gated_in_place():
    attention, seen = random_attention(16, heads=2, head_dim=8, gated=True), []
    attention.to_v.register_forward_hook(lambda _, args, out: seen.append(out))
    x = torch.randn(1, 5, 16)
    attention(x, value_passthrough=True)
    assert torch.equal(seen[0], torch.nn.functional.linear(x, attention.to_v.weight, attention.to_v.bias))
