"""Normalised attention guidance and text that only some tokens read, against what they stand for."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.models.transformer.attention_weights import FactoredAttentionWeights
from soundstage.models.transformer.block import Pending, TransformerBlock
from soundstage.models.transformer.conditioning import StreamConditioning
from soundstage.models.transformer.negative_text import NegativeText
from soundstage.models.transformer.rows import Rows
from transformer_samples import GENERATIONS, NUM_TOKENS, inputs, transformer

CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # float32; the same sums in another order


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(heard: Tensor, away: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """The formula of arXiv 2505.21179, one token at a time."""
    rows = []
    for plus, minus in zip(heard.flatten(0, 1), away.flatten(0, 1), strict=True):
        far = plus * scale - minus * (scale - 1)
        ratio = far.abs().sum() / plus.abs().sum()
        if ratio > tau:
            far = far / ratio * tau
        rows.append(alpha * far + (1 - alpha) * plus)
    return torch.stack(rows).view(heard.shape)


@pytest.mark.parametrize(("scale", "tau", "alpha"), [(1.5, 2.5, 0.25), (8.0, 2.5, 0.25), (11.0, 1.0, 1.0)])
def test_steering_is_the_published_formula(scale: float, tau: float, alpha: float) -> None:
    heard, away = noise(2, 5, 12), noise(2, 5, 12, seed=1)
    text = NegativeText(context=away, scale=scale, tau=tau, alpha=alpha)
    torch.testing.assert_close(text.steer(heard, away), by_hand(heard, away, scale, tau, alpha))


def test_steered_tokens_are_never_longer_than_tau() -> None:
    heard, away = noise(1, 64, 12), 5 * noise(1, 64, 12, seed=1)
    steered = NegativeText(context=away, scale=20.0, tau=2.0, alpha=1.0).steer(heard, away)
    ratios = steered.abs().sum(-1) / heard.abs().sum(-1)
    assert ratios.max() < 2.0001
    assert ratios.min() > 1.9999, "with such a scale every token reaches the limit"


def test_token_that_hears_nothing_stays_finite() -> None:
    text = NegativeText(context=noise(1, 3, 4), scale=5.0, tau=2.5, alpha=0.5)
    assert text.steer(torch.zeros(1, 3, 4), noise(1, 3, 4)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("generation", GENERATIONS)
def test_text_attention_with_a_negative_text_is_the_formula_between_its_halves(generation: str) -> None:
    """The block's text step is rebuilt from its layers: attention to both texts, the formula, the output."""
    model = transformer(generation)
    video, _ = inputs(model.config)
    away = noise(*video.context.shape, seed=5)
    negative = NegativeText(context=away, scale=4.0, tau=2.5, alpha=0.5)
    given = {"video": replace(video, negative_text=negative)}
    conditioning = model.condition("video", given, model.prepare(video.positions))
    block = model.transformer_blocks[0]
    attention, x = block.attn2, noise(2, NUM_TOKENS["video"], model.config.video.dim)
    heards: list[Tensor] = []
    handle = attention.to_out[0].register_forward_pre_hook(lambda _, args: heards.append(args[0]))
    try:
        for text in (video.context, away):
            plain = replace(video, context=text)
            only = model.condition("video", {"video": plain}, model.prepare(video.positions))
            read_text(block, x, only)
        read_text(block, x, conditioning)
    finally:
        handle.remove()
    wanted, unwanted, steered = heards
    if attention.to_gate_logits is not None:  # the gates stand behind the formula: take them out again
        given_x = _gate_free(model, block, x, conditioning)
        wanted, unwanted, steered = (heard / given_x for heard in heards)
    torch.testing.assert_close(steered, by_hand(wanted, unwanted, 4.0, 2.5, 0.5), **CLOSE)


def read_text(block: TransformerBlock, x: Tensor, conditioning: StreamConditioning) -> None:
    modulation = conditioning.modulation.plus(block.scale_shift_table)
    pending = Pending({"video": x.clone()}, Rows.shared(len(x), 1))
    block.attend_to_text(pending, block.layers("video"), conditioning, modulation)


def _gate_free(model, block, x, conditioning) -> Tensor:
    seen: list[Tensor] = []
    handle = block.attn2.to_gate_logits.register_forward_hook(lambda _, args, out: seen.append(out))
    try:
        read_text(block, x, conditioning)
    finally:
        handle.remove()
    gates = 2 * torch.sigmoid(seen[0])
    return gates.repeat_interleave(block.attn2.to_q.out_features // block.attn2.heads, dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("generation", GENERATIONS)
def test_prompt_as_its_own_negative_changes_nothing(generation: str) -> None:
    model = transformer(generation)
    video, audio = inputs(model.config)
    plain = model(video, audio)
    same = [
        replace(s, negative_text=NegativeText(context=s.context, scale=7.0, tau=2.5, alpha=0.5))
        for s in (video, audio)
    ]
    steered = model(*same)
    torch.testing.assert_close(steered.video, plain.video, **CLOSE)
    torch.testing.assert_close(steered.audio, plain.audio, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("generation", GENERATIONS)
def test_token_reads_only_the_text_that_its_weights_name(generation: str) -> None:
    """Two texts behind each other with weights 1 and 0 are the first text alone, up to rounding."""
    model = transformer(generation)
    video, audio = inputs(model.config)
    other = noise(*video.context.shape, seed=9)
    n, s = NUM_TOKENS["video"], video.context.shape[1]
    weights = FactoredAttentionWeights(
        rows=torch.tensor([1.0, 0.0]).view(1, 2, 1).expand(1, 2, n).contiguous(),
        columns=torch.eye(2).repeat_interleave(s, dim=1)[None],
        tile_size=3,
    )
    both = replace(video, context=torch.cat([video.context, other], dim=1), context_weights=weights)
    alone, together = model(video, audio), model(both, audio)
    torch.testing.assert_close(together.video, alone.video, **CLOSE)
    torch.testing.assert_close(together.audio, alone.audio, **CLOSE)


def test_mask_and_weights_together_are_refused() -> None:
    model = transformer("2.3")
    video, _ = inputs(model.config)
    weights = FactoredAttentionWeights(rows=torch.ones(1, 1, 8), columns=torch.ones(1, 1, 5))
    mask = torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(RequestError, match="context_mask and context_weights both say"):
        model(replace(video, context_mask=mask, context_weights=weights))
