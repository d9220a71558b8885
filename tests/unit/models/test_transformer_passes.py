"""Exact savings: the same numbers as the plain transformer, for less work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import plain_transformer
from live_bytes import LiveBytes
from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.modulation import Modulation, NoiseLevels
from soundstage.nn.kernels.choice import TorchKernels, use_kernels
from soundstage.nn.lora import Addition, LoraLinear, LowRank
from soundstage.runtime.quantization.registry import QUANTIZATIONS, quantize, take_weight
from synchronisations import Synchronisations
from transformer_samples import (
    FIRST_FRAME,
    GENERATIONS,
    ISOLATED,
    PERTURBATIONS,
    PERTURBED,
    guided,
    inputs,
    item,
    other_texts,
    stream_input,
    transformer,
)

EXACT = 1e-5  # of the largest value: float32 sums in another order

pytestmark = pytest.mark.usefixtures("_no_grad")


@pytest.fixture
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def differs(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def plainly(model: AVTransformer, passes: Passes, video, audio) -> AV[Tensor]:
    """Run pass after pass through the plain transformer."""
    results = []
    for branch in passes.branches:
        streams = [
            replace(stream, context=text.context.expand(len(stream.latents), -1, -1))
            for stream, text in ((video, branch.texts.video), (audio, branch.texts.audio))
        ]
        results.append(plain_transformer.velocities(model, *streams, branch.perturbation))
    return AV(torch.cat([r.video for r in results]), torch.cat([r.audio for r in results]))


def kept_frame(video):
    """Give the first frame a noise level of its own."""
    timesteps = video.timesteps.clone()
    timesteps[:, :FIRST_FRAME] = 0
    return replace(video, timesteps=timesteps)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_one_call_equals_the_plain_transformer(generation: str):
    model = transformer(generation)
    video, audio = inputs(model.config)
    for perturbation in (None, PERTURBED, ISOLATED):
        expected = plain_transformer.velocities(model, video, audio, perturbation)
        got = model(video, audio, perturbation and [perturbation] * 2)
        assert differs(got.video, expected.video) < EXACT
        assert differs(got.audio, expected.audio) < EXACT


@pytest.mark.parametrize(
    ("batch", "joined", "rows_at_once"), [(1, False, None), (2, True, None), (2, False, 1), (1, True, 3)]
)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_four_passes_equal_four_plain_ones(
    generation: str, batch: int, joined: bool, rows_at_once: int | None
):
    model = transformer(generation)
    video, audio = inputs(model.config, batch)
    video, passes = kept_frame(video), guided(model.config, rows_at_once=rows_at_once)
    if joined:
        model.join_projections()
    expected = plainly(model, passes, video, audio)
    for _ in range(2):  # the second time with what was kept
        got = model(video, audio, passes=passes)
        assert differs(got.video, expected.video) < EXACT
        assert differs(got.audio, expected.audio) < EXACT
    assert not torch.allclose(*expected.video.chunk(4)[:2])


def test_gradients_are_those_of_the_plain_transformer():
    model, gradients = transformer("2.3"), []
    video, audio = inputs(model.config)
    mixed = [PERTURBED, ISOLATED]
    with torch.enable_grad():
        for run in (
            lambda: [model(video, audio, mixed)],
            lambda: [
                plain_transformer.velocities(model, item(video, i), item(audio, i), perturbation)
                for i, perturbation in enumerate(mixed)
            ],
        ):
            model.zero_grad()
            sum(made.video.square().sum() + made.audio.square().sum() for made in run()).backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, got in gradients[0].items():
        torch.testing.assert_close(got, gradients[1][name], atol=1e-3, rtol=1e-3)


def test_tokens_that_are_given_stay_as_they_are():
    """Residuals are added in place, but never to what the caller holds."""
    model = transformer("2.0")
    video, audio = inputs(model.config)
    before = video.latents.clone(), audio.latents.clone(), video.context.clone()
    model(video, audio, passes=guided(model.config))
    assert all(
        torch.equal(*pair) for pair in zip(before, (video.latents, audio.latents, video.context), strict=True)
    )


# Work


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlopCounterMode]:
    monkeypatch.setattr("soundstage.nn.linear._suits_onednn", lambda *_: False)  # unknown to the counter
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        yield counter


def block_flops(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts()
    return sum(sum(counts[name].values()) for name in counts if name.count(".") == 2 and "_blocks" in name)


def block_work(shape: TransformerConfig, n: int, m: int, s: int) -> dict[str, int]:
    """Count the multiply-adds of the steps of one block by hand, with keys and values of texts kept."""
    work = dict.fromkeys(("self", "values", "text", "cross", "feed_forward"), 0)
    for stream, count in ((shape.video, n), (shape.audio, m)):
        d = stream.dim
        work["self"] += count * d * 4 * d + 2 * count * count * d
        work["values"] += count * d * 2 * d  # self-attention that passes its values through
        work["text"] += count * d * 2 * d + 2 * count * s * d
        work["feed_forward"] += count * d * 2 * stream.ff_dim
    v, a = shape.video.dim, shape.audio.dim
    work["cross"] = 2 * (2 * n * v * a + 2 * m * a * a + 2 * n * m * a)
    return work


def step_work(work: dict[str, int], num_layers: int, stg_block: int) -> tuple[int, int]:
    """Count one forward, and what four passes cost that share what they have in common."""
    rest = work["text"] + work["cross"] + work["feed_forward"]
    forward = num_layers * (work["self"] + rest)
    uncond = forward - work["self"]
    isolated = num_layers * (work["self"] + rest - work["cross"]) - work["self"] - work["text"]
    perturbed = work["values"] + rest + (num_layers - stg_block - 1) * (work["self"] + rest)
    return forward, forward + uncond + isolated + perturbed


@pytest.mark.parametrize("rows_at_once", [None, 1])
def test_four_passes_share_what_they_have_in_common(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int | None
):
    model, costs = transformer("2.0"), []
    streams = inputs(model.config, 1)
    for names in (("cond",), tuple(PERTURBATIONS)):
        passes = guided(model.config, names, rows_at_once=rows_at_once)
        model(*streams, passes=passes)  # keys and values of the texts are made in the first step
        with counted(monkeypatch) as counter:
            model(*streams, passes=passes)
        costs.append(block_flops(counter) // 2)
    work = block_work(model.config, streams[0].latents.shape[1], streams[1].latents.shape[1], 5)
    assert costs == list(step_work(work, model.config.num_layers, stg_block=1))


def test_four_passes_of_the_released_size_cost_three_and_a_quarter_forwards():
    """The count that the test above confirms, at 1280x704x121 and with the official perturbed block."""
    shape = TransformerConfig.from_header({})
    forward, four = step_work(block_work(shape, 14_080, 126, 1024), shape.num_layers, stg_block=29)
    assert four / forward == pytest.approx(3.28, abs=0.005)


def test_isolated_pass_does_no_cross_modal_work(monkeypatch: pytest.MonkeyPatch):
    model, costs = transformer("2.0"), []
    streams = inputs(model.config, 1)
    for names in (("cond",), ("isolated",)):
        with counted(monkeypatch) as counter:
            model(*streams, passes=guided(model.config, names))
        costs.append(block_flops(counter))
    n, m, s = streams[0].latents.shape[1], streams[1].latents.shape[1], streams[0].context.shape[1]
    alone = model.flops(n, 0, s) + model.flops(0, m, s)
    assert costs == [model.flops(n, m, s), alone]


class _CountedKernels(TorchKernels):
    """Plain steps that note how many tokens are normed in one way and in two."""

    def __init__(self) -> None:
        self.once, self.twice = [], []

    def norm_modulate(self, x, scale, shift, eps):
        self.once.append(x.shape[1])
        return super().norm_modulate(x, scale, shift, eps)

    def norm_modulate_twice(self, x, first, second, eps):
        self.twice.append(x.shape[1])
        return super().norm_modulate_twice(x, first, second, eps)


def test_streams_are_normed_once_for_both_readers():
    model, kernels = transformer("2.0"), _CountedKernels()
    use_kernels(model, kernels)
    streams = inputs(model.config, 1)
    n, m = (stream.latents.shape[1] for stream in streams)
    model(*streams)
    assert kernels.twice == [n, m] * model.config.num_layers
    kernels.once.clear()
    model(*streams, [Perturbation(skip_v2a="all")])  # of the two readers only the picture is left
    assert kernels.twice == [n, m] * model.config.num_layers
    assert kernels.once == [n, m, n, m, n, m] * model.config.num_layers


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_block_adds_its_tables_once(monkeypatch: pytest.MonkeyPatch, generation: str):
    model, added = transformer(generation), []
    plus = Modulation.plus
    monkeypatch.setattr(Modulation, "plus", lambda self, *given: added.append(given[0]) or plus(self, *given))
    model(*inputs(model.config, 1))
    own = [block.scale_shift_table for block in model.transformer_blocks]
    assert [sum(table is one for one in added) for table in own] == [1] * model.config.num_layers


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_tables_of_all_blocks_are_added_together_and_change_nothing(monkeypatch, generation: str):
    model, adding = transformer(generation), []
    streams = inputs(model.config, 1)
    plus_all = Modulation.plus_all

    def note(self, *given):
        adding.append(plus_all(self, *given))
        return adding[-1]

    monkeypatch.setattr(Modulation, "plus_all", note)
    together = model(*streams)
    newer = generation != "2.0"
    assert [one.sums is not None for one in adding] == [True] * (8 if newer else 6)
    monkeypatch.setattr(Modulation, "plus_all", lambda self, *_: self)
    one_by_one = model(*streams)
    assert torch.equal(together.video, one_by_one.video)
    assert torch.equal(together.audio, one_by_one.audio)


def test_text_costs_nothing_after_the_first_step(monkeypatch: pytest.MonkeyPatch):
    model, costs = transformer("2.0"), []
    passes = guided(model.config, ("cond",))
    for _ in range(3):
        with counted(monkeypatch) as counter:
            model(*inputs(model.config, 1), passes=passes)
        costs.append(sum(counter.get_flop_counts()["Global"].values()))
    shape, layers, s = model.config, model.config.num_layers, 5
    projected = sum(
        2 * s * 2 * stream.context_dim * stream.dim * layers for stream in (shape.video, shape.audio)
    )
    widened = sum(2 * s * (shape.caption_channels + d.dim) * d.dim for d in (shape.video, shape.audio))
    assert costs[0] - costs[1] == projected + widened
    assert costs[1] == costs[2]


def test_passes_that_never_part_are_one():
    model, seen = transformer("2.0"), []
    model.transformer_blocks[-1].register_forward_hook(lambda _, args, out: seen.append(len(out.rows.rows)))
    same = guided(model.config, ("cond", "cond", "cond"))
    got = model(*inputs(model.config, 1), passes=same)
    assert seen == [1]
    assert torch.equal(got.video[0], got.video[2])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_calls_with_known_levels_and_tables_never_wait_for_the_device(generation: str):
    model = transformer(generation)
    video, audio = (
        replace(stream, levels=NoiseLevels.of_items(stream.sigma)) for stream in inputs(model.config, 1)
    )
    ropes = model.prepare(video.positions, audio.positions)
    with Synchronisations() as known:
        model(video, audio, ropes=ropes, passes=guided(model.config))
    with Synchronisations() as searched:
        model(replace(video, levels=None), audio, ropes=ropes, passes=guided(model.config))
    assert known.found == []
    assert searched.found != [], "the counter counts"


def test_a_first_frame_with_known_levels_does_not_wait_either():
    model = transformer("2.3")
    video, audio = inputs(model.config, 2)
    video = kept_frame(video)
    known = [replace(stream, levels=NoiseLevels.of_tokens(stream.timesteps)) for stream in (video, audio)]
    ropes = model.prepare(video.positions, audio.positions)
    with Synchronisations() as waits:
        model(*known, ropes=ropes, passes=guided(model.config, rows_at_once=1))
    assert waits.found == []


# What is kept


def test_kept_text_follows_its_weights_and_its_prompt():
    model = transformer("2.0")
    streams, passes = inputs(model.config, 1), guided(model.config, ("cond",))
    before = model(*streams, passes=passes).video
    model.transformer_blocks[0].attn2.to_v.weight.mul_(1.5)  # as a fused LoRA does
    after = model(*streams, passes=passes).video
    assert not torch.allclose(before, after)
    assert torch.equal(after, model(*streams, passes=replace(passes, kept=Kept())).video)
    texts = other_texts(model.config)
    elsewhere = model(*streams, passes=replace(passes, branches=(Branch(texts=texts),))).video
    assert not torch.allclose(after, elsewhere)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_kept_text_follows_the_codes_of_quantised_weights(name: str):
    model = transformer("2.0").requires_grad_(False)
    quantize(model, name, inside="transformer_blocks")
    streams, passes = inputs(model.config, 1), guided(model.config, ("cond",))
    before = model(*streams, passes=passes).video
    layer = model.transformer_blocks[0].attn2.to_v
    take_weight(layer, 1.5 * layer.weight)
    after = model(*streams, passes=passes).video
    assert not torch.allclose(before, after)
    assert torch.equal(after, model(*streams, passes=replace(passes, kept=Kept())).video)


@pytest.mark.parametrize("joined", [False, True])
def test_live_branches_are_heard_and_leave_no_trace(joined: bool):
    model = transformer("2.0")
    if joined:
        model.join_projections()
    streams, passes = inputs(model.config, 1), guided(model.config)
    before = model(*streams, passes=passes)
    names = [
        f"transformer_blocks.1.{attention}.{part}"
        for attention in ("attn1", "attn2")
        for part in ("to_k", "to_v")
    ]
    layers = {name: model.get_submodule(name) for name in names}
    for name, layer in layers.items():
        factors = LowRank(down=torch.ones(1, layer.in_features), up=torch.ones(layer.out_features, 1))
        model.set_submodule(name, LoraLinear(layer, [Addition(factors, 0.1)]))
    live = model(*streams, passes=passes)
    assert not torch.allclose(live.video, before.video)
    expected = model(*streams, passes=replace(passes, kept=Kept()))
    assert torch.equal(live.video, expected.video)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    assert torch.equal(model(*streams, passes=passes).video, before.video)


@pytest.mark.parametrize("joined", [False, True])
@torch.no_grad()
def test_memory_of_what_is_kept_is_counted(joined: bool):
    model = transformer("2.0")
    if joined:
        model.join_projections()
    passes = guided(model.config)
    assert passes.kept.num_bytes == 0
    model(*inputs(model.config, 1), passes=passes)
    assert passes.kept.num_bytes == model.kept_bytes(num_texts=2, num_text_tokens=5)
    passes.kept.clear()
    assert passes.kept.num_bytes == 0


def test_text_that_the_noise_level_changes_is_not_kept():
    model = transformer("2.3")
    passes = guided(model.config)
    model(*inputs(model.config, 1), passes=passes)
    assert passes.kept.num_bytes == model.kept_bytes(num_texts=2, num_text_tokens=5) == 0


# Requests


def test_passes_and_perturbations_exclude_each_other():
    model = transformer("2.0")
    with pytest.raises(RequestError, match="perturbations and passes both say what is left out"):
        model(*inputs(model.config, 1), [ISOLATED], passes=guided(model.config))


def test_pass_that_perturbs_a_missing_block_is_refused():
    model = transformer("2.0")
    branch = Branch(perturbation=Perturbation(skip_a2v=frozenset([7])))
    with pytest.raises(RequestError, match="block 7 does not exist"):
        model(*inputs(model.config, 1), passes=Passes(branches=(branch,)))


# Memory


def test_a_further_pass_of_a_large_clip_takes_the_room_of_its_tokens_alone():
    """Rows of passes that part are freed when they have, and a row's own work before the next row's."""
    model, count = transformer("2.0"), 2048
    first = stream_input(model.config, "video", 1)
    tokens = replace(
        first,
        latents=torch.randn(1, count, first.latents.shape[-1]),
        timesteps=first.timesteps[:, :1].expand(1, count),
        positions=torch.rand(1, 3, count, 2).cumsum(-1),
    )
    audio, peaks = stream_input(model.config, "audio", 1), []
    for names in (("cond",), ("cond", "uncond"), tuple(PERTURBATIONS)):
        passes = guided(model.config, names, rows_at_once=1)
        with LiveBytes().ignore(model) as live:
            model(tokens, audio, passes=passes)
        peaks.append(live.peak)
    row = 4 * count * model.config.video.dim
    assert peaks[1] - peaks[0] < 1.5 * row
    assert peaks[2] - peaks[0] < 3.5 * row
