"""Attention weights: factors, and the parts they are cut into, say the same as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from soundstage.models.transformer import attention_weights
from soundstage.models.transformer.attention_weights import (
    FactoredAttentionWeights,
    spread_parts,
    weights_to_bias,
)
from soundstage.nn.attention_backends import SDPA, Sdpa
from transformer_samples import inputs, transformer


def appended_tokens(strength: float = 0.4) -> FactoredAttentionWeights:
    """Make the weights of a target of 5 tokens with 3 appended ones that it hears less."""
    groups = torch.tensor([0] * 5 + [1] * 3)
    return FactoredAttentionWeights.from_groups(groups, torch.tensor([[1.0, strength], [strength, 1.0]]))


def test_group_weights_are_the_block_table():
    weights = appended_tokens().weights()
    assert weights.shape == (1, 8, 8)
    assert torch.all(weights[0, :5, :5] == 1)
    assert torch.all(weights[0, 5:, 5:] == 1)
    torch.testing.assert_close(weights[0, :5, 5:], torch.full((5, 3), 0.4))
    torch.testing.assert_close(weights[0, 5:, :5], torch.full((3, 5), 0.4))


def test_factors_can_give_every_token_its_own_strength():
    strength = torch.tensor([0.2, 0.9])
    target = torch.tensor([1.0, 1, 1, 0, 0])
    own = torch.cat([torch.zeros(3), strength])
    appended = 1 - target
    factors = FactoredAttentionWeights(
        rows=torch.stack([target, target, own, appended])[None],
        columns=torch.stack([target, own, target, appended])[None],
    )
    weights = factors.weights()[0]
    torch.testing.assert_close(weights[:3, 3:], strength.expand(3, 2))
    torch.testing.assert_close(weights[3:, :3], strength[:, None].expand(2, 3))
    assert torch.all(weights[:3, :3] == 1)


def by_table(weights: FactoredAttentionWeights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The plain way: a table of all pairs."""
    return SDPA.attend(q, k, v, weights_to_bias(weights.weights(), q.dtype))


def noise(weights: FactoredAttentionWeights, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    n, m, batch = weights.rows.shape[-1], weights.columns.shape[-1], max(2, len(weights.rows))
    return [torch.randn(batch, 2, count, 16, generator=generator).to(dtype) for count in (n, m, m)]


def groups(*of_tokens: int, between: Sequence[Sequence[float]]) -> FactoredAttentionWeights:
    return FactoredAttentionWeights.from_groups(
        torch.tensor(of_tokens), torch.tensor(between, dtype=torch.float32)
    )


def timed(shares: Tensor, words: int = 7) -> FactoredAttentionWeights:
    """A row of shares of prompts per token."""
    columns = torch.eye(shares.shape[1]).repeat_interleave(words, dim=1)
    return FactoredAttentionWeights(rows=shares.T[None].contiguous(), columns=columns[None])


def with_reference(strengths: Tensor, target: int = 90) -> FactoredAttentionWeights:
    """A reference whose tokens see the clip, and are seen by it, with strengths of their own."""
    is_target = (torch.arange(target + len(strengths)) < target).float()
    appended = torch.cat([torch.zeros(target), strengths])
    rows, columns = [is_target, appended, 1 - is_target], [is_target + appended, is_target, 1 - is_target]
    return FactoredAttentionWeights(rows=torch.stack(rows)[None], columns=torch.stack(columns)[None])


BASE, FIRST, SECOND = torch.eye(3)
CASES = {
    "appended": appended_tokens(),
    "shut out": appended_tokens(0.0),
    "in turns": groups(*[0, 1] * 50, between=[[1.0, 0.5], [0.0, 1.0]]),
    "sees nothing": groups(*[0] * 40, *[1] * 50, between=[[1.0, 0.5], [0.0, 0.0]]),
    "one of few sees nothing": groups(0, 1, 0, 2, between=[[1, 0, 0], [0, 0, 0], [0, 1, 1]]),
    "two references": groups(*[0] * 50, *[1] * 40, *[2] * 33, between=[[1, 0.3, 1], [0.3, 1, 0], [1, 0, 1]]),
    "prompts": timed(torch.stack([BASE] * 40 + [FIRST] * 70 + [(FIRST + SECOND) / 2] * 33 + [SECOND] * 40)),
    "slopes": timed(torch.stack([BASE.lerp(FIRST, i / 50) for i in range(51)] + [FIRST] * 60)),
    "a strength per token": with_reference(torch.linspace(0, 1, 41)),
    "a strength per item": FactoredAttentionWeights(
        rows=torch.cat([with_reference(torch.full((40,), s)).rows for s in (0.0, 0.5, 1.0)]),
        columns=torch.cat([with_reference(torch.full((40,), s)).columns for s in (0.0, 0.5, 1.0)]),
    ),
}


@pytest.mark.parametrize("held", [0, 2**20], ids=["made when used", "held"])
@pytest.mark.parametrize("tile_size", [3, 40, 1024])
@pytest.mark.parametrize("name", CASES)
def test_parts_attend_as_the_table_says(name: str, tile_size: int, held: int, monkeypatch) -> None:
    monkeypatch.setattr(attention_weights, "HELD", held)
    weights = replace(CASES[name], tile_size=tile_size)
    q, k, v = noise(weights)
    parts = weights.parts(q.dtype)
    starts, stops = [part.start for part in parts.parts], [part.stop for part in parts.parts]
    assert [*starts, q.shape[-2]] == [0, *stops]
    result = torch.cat(list(parts.attend(SDPA, q, k, v)), dim=-2)
    torch.testing.assert_close(result, by_table(weights, q, k, v))


@pytest.mark.parametrize("name", CASES)
def test_parts_in_bfloat16_are_as_near_as_the_table(name: str) -> None:
    """Both are compared with float32; a bias in bfloat16 is off by up to 2^-9 of itself."""
    weights = CASES[name]
    q, k, v = noise(weights, torch.bfloat16)
    exact = by_table(weights, q.float(), k.float(), v.float())
    parts = torch.cat(list(weights.parts(q.dtype).attend(SDPA, q, k, v)), dim=-2)
    error, least = (float((x.float() - exact).abs().max()) for x in (parts, by_table(weights, q, k, v)))
    assert error <= 1.2 * least + 1e-3


@pytest.mark.parametrize("items", [[2, 0], [0, 1, 2]])
@pytest.mark.parametrize("held", [0, 2**20])
def test_parts_spread_over_items(items: list[int], held: int, monkeypatch) -> None:
    monkeypatch.setattr(attention_weights, "HELD", held)
    weights = CASES["a strength per item"]
    q, k, v = noise(weights)
    parts = spread_parts(replace(weights, tile_size=30).parts(q.dtype), items)
    result = torch.cat(list(parts.attend(SDPA, q[items], k[items], v[items])), dim=-2)
    torch.testing.assert_close(result, by_table(weights, q, k, v)[items])


@dataclass(frozen=True)
class Watched(Sdpa):
    """Notes how many queries and keys each call has, and the shape of its bias."""

    calls: list[tuple[int, int, tuple[int, ...] | None]] = field(default_factory=list)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        self.calls.append((q.shape[-2], k.shape[-2], None if bias is None else tuple(bias.shape[-2:])))
        return super().attend(q, k, v, bias)


def calls(weights: FactoredAttentionWeights) -> list[tuple[int, int, tuple[int, ...] | None]]:
    backend, qkv = Watched(), noise(weights)
    list(weights.parts(torch.float32).attend(backend, *qkv))
    return backend.calls


def test_tokens_of_one_prompt_read_that_alone_and_need_no_bias() -> None:
    """So a backend that takes no bias, as flash kernels do, runs for them."""
    assert calls(CASES["prompts"]) == [(40, 7, None), (70, 7, None), (33, 14, None), (40, 7, None)]


def test_tokens_that_are_shut_out_are_left_out() -> None:
    shut = groups(*[0] * 40, *[1] * 50, between=[[1.0, 0.0], [0.0, 1.0]])
    assert calls(shut) == [(40, 40, None), (50, 50, None)]


def test_bias_that_queries_have_in_common_has_one_row() -> None:
    fraction = groups(*[0] * 40, *[1] * 50, between=[[1.0, 0.5], [0.5, 1.0]])
    assert calls(fraction) == [(40, 90, (1, 90)), (50, 90, (1, 90))]


def test_short_stretches_attend_together() -> None:
    assert calls(CASES["in turns"]) == [(100, 100, (100, 100))]


def test_bias_of_many_rows_is_not_held() -> None:
    """A strength per token: 14,080 tokens of a reference would have 300 million entries."""
    weights = with_reference(torch.linspace(0.1, 1, 2000), target=2100)
    first, *others = weights.parts(torch.float32).parts
    assert first.bias.shape == (1, 1, 1, 4100)
    assert len(others) == 2
    for part in others:
        assert part.bias.kind_of.shape == (4100,)
        assert part.bias.factors.columns.shape[-1] == 2
        assert part.bias.make().shape == (1, 1, part.stop - part.start, 4100)


def test_weights_that_limit_nothing_are_no_parts() -> None:
    """Then attention is the very call that it is without weights."""
    assert appended_tokens(1.0).parts(torch.float32) is None
    assert groups(0, 0, 1, between=[[0.5, 0.5], [0.25, 0.25]]).parts(torch.float32) is None


@torch.no_grad()
def test_transformer_hears_factors_as_it_hears_their_table():
    model = transformer("2.3")
    video, audio = inputs(model.config)
    factors = appended_tokens()
    tables = [factors.weights().expand(2, -1, -1), factors, factors.parts(torch.float32)]
    results = [model(replace(video, attention_weights=weights), audio).video for weights in tables]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@torch.no_grad()
def test_weight_zero_shuts_tokens_out():
    model = transformer("2.0")
    video, _ = inputs(model.config)
    shut = FactoredAttentionWeights.from_groups(torch.tensor([0] * 5 + [1] * 3), torch.eye(2))
    alone = model(replace(video, attention_weights=shut)).video[:, :5]
    disturbed = video.latents.clone()
    disturbed[:, 5:] += 1
    again = model(replace(video, attention_weights=shut, latents=disturbed)).video[:, :5]
    torch.testing.assert_close(alone, again)


@torch.no_grad()
def test_weight_one_changes_nothing():
    model = transformer("2.0")
    video, _ = inputs(model.config)
    ones = model(replace(video, attention_weights=torch.ones(1, 8, 8)))
    torch.testing.assert_close(ones.video, model(video).video)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bias_stays_finite_in_every_dtype(dtype: torch.dtype):
    bias = weights_to_bias(torch.tensor([[[0.0, 1e-45], [0.5, 1.0]]]), dtype)
    assert bias.dtype == dtype
    assert bias.isfinite().all()
    assert bias[0, 0, 0, 0] == torch.finfo(dtype).min
    torch.testing.assert_close(bias[0, 0, 1].float(), torch.tensor([0.5, 1.0]).log(), atol=3e-3, rtol=0)


def test_no_weights_no_bias():
    assert weights_to_bias(None, torch.float32) is None
