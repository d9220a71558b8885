"""Graphs with a stand-in for CUDA: recordings that run the function again, on static tensors, in place."""

import contextlib
import gc
import itertools
import weakref
from dataclasses import fields, replace
from unittest.mock import MagicMock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from soundstage.core.types import AV
from soundstage.models.transformer.attention_weights import FactoredAttentionWeights
from soundstage.models.transformer.inputs import Branch, Passes, StreamInput, Text
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.modulation import NoiseLevels
from soundstage.models.transformer.negative_text import NegativeText
from soundstage.models.transformer.ropes import StreamRope
from soundstage.models.transformer.step_cache import CacheRule, StepCache
from soundstage.nn.attention_parts import AttentionParts, Part
from soundstage.nn.rope import Rope
from soundstage.pipelines.pipeline import Pipeline
from soundstage.runtime.cuda_graphs import CudaRecorder, GraphedTransformer
from soundstage.runtime.residency import Residency, send_home
from transformer_samples import config, inputs, transformer


class Rerun:
    """Records by keeping the function; a repetition writes into the first results, as a graph does."""

    def __init__(self):
        self.recorded = 0
        self.repeated = 0

    def record(self, run):
        self.recorded += 1
        outputs = run()

        def replay():
            self.repeated += 1
            for output, new in zip(outputs, run(), strict=True):
                output.copy_(new)

        return replay, outputs


@pytest.fixture
def graphed():
    return GraphedTransformer(transformer("2.3"), recorder=Rerun())


def noisier(stream, by):
    """Go on to another step: other latents, half the noise level."""
    sigma = stream.sigma * 0.5
    levels = None if stream.levels is None else NoiseLevels(sigma, None)
    return replace(
        stream, latents=stream.latents + by, timesteps=stream.timesteps * 0.5, sigma=sigma, levels=levels
    )


def with_levels(stream):
    """Say what the distinct noise levels are, as denoisers do; otherwise they are searched for."""
    return replace(stream, levels=NoiseLevels(stream.sigma, None))


def test_steps_of_a_run_share_one_recording(graphed):
    video, audio = map(with_levels, inputs(config("2.3"), batch=1))
    results, wanted = [], []
    for step in range(3):
        given = noisier(video, 0.1 * step), noisier(audio, 0.2 * step)
        results.append(graphed(*given))
        with torch.no_grad():
            wanted.append(graphed.transformer(*given))
    for got, want in zip(results, wanted, strict=True):
        assert torch.equal(got.video, want.video)
        assert torch.equal(got.audio, want.audio)
    assert (graphed.recorder.recorded, graphed.recorder.repeated) == (1, 2)
    assert [start.what for start in graphed.cold_starts] == ["recording a CUDA graph"]
    assert graphed.cold_starts[0].seconds > 0


def test_another_size_is_recorded_anew(graphed):
    for batch in (1, 2, 1):
        video, audio = inputs(config("2.3"), batch=batch)
        assert graphed(video, audio).video.shape[0] == batch
    assert graphed.recorder.recorded == 2


def clip(network, seed):
    """Make what another clip of the same size gives: other texts, positions, tables and noise."""
    torch.manual_seed(seed)
    streams = []
    for stream in map(with_levels, inputs(network.config, batch=1)):
        streams.append(
            replace(
                stream,
                latents=torch.randn_like(stream.latents),
                context=torch.randn_like(stream.context),
                positions=stream.positions + seed,
            )
        )
    texts = [
        AV(*(Text(context=torch.randn_like(stream.context)) for stream in streams))
        for _ in ("cond", "uncond")
    ]
    return (*streams, network.prepare(*(stream.positions for stream in streams)), texts)


def run(forward, video, audio, ropes, texts, steps=3, kept=None):
    kept = Kept() if kept is None else kept
    results = []
    for step in range(steps):
        names = texts if step != 1 else texts[:1]  # guidance pauses, as limits to it ask for
        passes = Passes(branches=tuple(Branch(texts=text) for text in names), kept=kept)
        with torch.no_grad():
            given = noisier(video, 0.1 * step), noisier(audio, 0.2 * step)
            results.append(forward(*given, None, ropes, passes=passes))
    return results


def check(got, want):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.video, other.video, atol=1e-5, rtol=1e-5)  # the order of sums
        torch.testing.assert_close(one.audio, other.audio, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
def test_clips_of_a_size_share_their_recordings(generation):
    network = transformer(generation)
    graphed = GraphedTransformer(network, recorder=Rerun())
    for seed in range(4):
        given = clip(network, seed)
        check(run(graphed, *given), run(network, *given))
    assert graphed.recorder.recorded == 2  # with and without guidance
    kept_of_texts = graphed._kept._values
    assert bool(kept_of_texts) == (generation == "2.0")


def test_what_is_kept_of_a_text_is_held_once_for_all_kinds_of_calls():
    """Stage, window and pass may differ; the texts of a clip are the same."""
    network = transformer("2.0")
    graphed, kept = GraphedTransformer(network, recorder=Rerun()), Kept()
    given = clip(network, 0)
    run(graphed, *given)
    run(network, *given, kept=kept)
    assert len(graphed._kept._values) == len(kept._entries)


def test_recordings_that_two_runs_did_not_use_are_dropped():
    network = transformer("2.0")
    graphed = GraphedTransformer(network, recorder=Rerun())
    video, audio, _, texts = clip(network, 0)
    sizes = [1, 2, 3]  # tokens of the picture, times 8
    held = []
    for by in (*sizes, 3, 3, 3):
        longer = replace(
            video,
            latents=video.latents.repeat(1, by, 1),
            timesteps=video.timesteps.repeat(1, by),
            positions=video.positions.repeat(1, 1, by, 1),
        )
        run(graphed, longer, audio, network.prepare(longer.positions, audio.positions), texts)
        held.append(len(graphed._recorded))
    assert held == [2, 4, 6, 4, 2, 2]
    assert graphed.recorder.recorded == 6
    assert graphed._kept._values
    other = clip(network, 1)
    for _ in range(3):
        run(graphed, *other[:2], network.prepare(other[0].positions, other[1].positions), other[3])
    contexts = {id(place.static) for each in graphed._recorded.values() for place in each.places}
    for _, sources in graphed._kept._values.values():
        assert any(id(source) in contexts for source in sources)


def test_a_recording_holds_nothing_of_the_call_that_it_was_made_of():
    network = transformer("2.0")
    graphed = GraphedTransformer(network, recorder=Rerun())
    video, audio, ropes, texts = clip(network, 0)
    kept = Kept()
    gone = [
        weakref.ref(thing) for thing in (video.latents, ropes.video.own.cos, texts[0].video.context, kept)
    ]
    run(graphed, video, audio, ropes, texts, kept=kept)
    del video, audio, ropes, texts, kept
    gc.collect()
    assert [thing() for thing in gone] == [None] * len(gone)


def test_weights_written_into_count_from_the_next_run_on():
    """They stay where they are, so that a recording stays good; what is kept of texts is renewed."""
    network = transformer("2.0")
    graphed = GraphedTransformer(network, recorder=Rerun())
    given = clip(network, 0)
    run(graphed, *given)
    with torch.no_grad():
        for weight in (network.proj_out.weight, network.transformer_blocks[0].attn2.to_k.weight):
            weight.mul_(2)
    again = (*given[:2], network.prepare(given[0].positions, given[1].positions), given[3])
    check(run(graphed, *again), run(network, *again))
    assert graphed.recorder.recorded == 2


def test_replaced_weights_are_recorded_anew():
    network = transformer("2.0")
    graphed = GraphedTransformer(network, recorder=Rerun())
    given = clip(network, 0)
    run(graphed, *given)
    layer = network.transformer_blocks[0].attn2.to_k
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 2)
    again = (*given[:2], network.prepare(given[0].positions, given[1].positions), given[3])
    check(run(graphed, *again), run(network, *again))
    assert graphed.recorder.recorded == 4
    assert len(graphed._recorded) == 2


def test_a_network_that_visits_is_brought_before_its_weights_are_looked_at():
    network = transformer("2.3")
    residency = Residency(torch.device("cpu"), budget=10**9)
    residency.manage("transformer", network)
    graphed = GraphedTransformer(network, recorder=Rerun())
    video, audio, ropes, texts = clip(network, 0)
    run(graphed, video, audio, ropes, texts)
    assert graphed.recorder.recorded == 2
    send_home(network)  # in the middle of a run: its weights come back to other places
    taken = [torch.empty_like(weight) for weight in network.parameters() for _ in range(4)]  # those they had
    check(run(graphed, video, audio, ropes, texts), run(network, video, audio, ropes, texts))
    assert graphed.recorder.recorded == 4
    del taken


def test_weights_are_not_searched_through_in_every_step(graphed, monkeypatch):
    network, looks = graphed.transformer, []
    buffers = network.buffers
    monkeypatch.setattr(network, "buffers", lambda: looks.append(1) or buffers())
    for seed in range(2):
        run(graphed, *clip(network, seed), steps=4)
    assert len(looks) == 2


class Capture(TorchDispatchMode):
    """Allows what a GPU could be told beforehand: tensors on "meta" stand for those on it."""

    READS = ("_local_scalar_dense", "nonzero", "unique", "_unique2", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in self.READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        if any(not tensor.is_meta for tensor in tensors):
            raise RuntimeError(f"{name} needs the host while capturing")
        return out


class NumbersFromTheHost(TorchFunctionMode):
    """Refuses what brings numbers of Python's to a device; "meta" takes them unseen."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.__name__}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def capturing():
    with NumbersFromTheHost(), Capture():
        yield


class NoReading(TorchDispatchMode):
    """Refuses what looks at values, on tensors that have some."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in Capture.READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        return func(*args, **(kwargs or {}))


class Unread(Rerun):
    """Records while nothing may be looked at or brought from the host."""

    def record(self, run):
        with NumbersFromTheHost(), NoReading():
            return super().record(run)


class Captured:
    """Records without computing, as a GPU does, and refuses what it would refuse."""

    def __init__(self):
        self.recorded = 0

    def record(self, run):
        self.recorded += 1
        with capturing():
            outputs = run()
        return (lambda: None), outputs


def on(value, device="meta"):
    """Bring what a network is given to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, NoiseLevels | Rope | StreamRope):
        return type(value)(*(on(part, device) for part in value))
    if isinstance(value, StreamInput | Text | AV | NegativeText | AttentionParts | Part):
        return replace(value, **{f.name: on(getattr(value, f.name), device) for f in fields(value)})
    if type(value) is tuple:
        return tuple(on(part, device) for part in value)
    return value


def embedded_shape(**changes):
    return replace(config("2.3"), absolute_positions=True, detail_width=24, prediction="clean", **changes)


def test_the_stand_in_refuses_what_a_gpu_would():
    a = torch.ones(3, device="meta")
    for illegal in (
        lambda: torch.tensor([1.0, 2.0], device="meta"),
        lambda: torch.ones(3).to("meta"),
        lambda: a + torch.ones(1),
        lambda: a.cpu(),
    ):
        with capturing(), pytest.raises(RuntimeError, match=r"capturing|no data"):
            illegal()
    with capturing():
        assert (a * 2 + torch.arange(3, device="meta")).is_meta


@pytest.mark.parametrize("made_for", ["2.0", "2.3", "2.5", "embedded"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_every_model_can_be_recorded(made_for, conditioned):
    """Nothing in a forward looks at values or brings numbers from the host."""
    shape = embedded_shape() if made_for == "embedded" else config(made_for)
    with torch.device("meta"):
        network = AVTransformer(shape)
    graphed = GraphedTransformer(network, recorder=Captured())
    for seed in range(3):
        video, audio, _, texts = clip(network_like(shape), seed)
        if conditioned:
            video, texts = with_conditions(video, texts)
        ropes = network_like(shape).prepare(video.positions, audio.positions)
        run(graphed, *map(on, (video, audio, ropes)), list(map(on, texts)))
    assert graphed.recorder.recorded == 2


def network_like(shape):
    """Stand in for a network where only its shape and its tables are asked for."""
    with torch.device("meta"):
        return AVTransformer(shape)


def with_conditions(video, texts):
    """Limit who attends to whom, give tokens noise levels of their own, steer away from a text."""
    half = torch.arange(video.latents.shape[1]) % 2
    limits = FactoredAttentionWeights.from_groups(half, torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    told = replace(
        video,
        levels=NoiseLevels(torch.tensor([0.0, 0.8]), half[None]),
        attention_weights=limits.parts(torch.float32),
    )
    away = NegativeText(context=torch.randn_like(video.context), scale=4.0, tau=2.5, alpha=0.25)
    return told, [replace(texts[0], video=replace(texts[0].video, negative=away)), *texts[1:]]


def test_the_stand_in_refuses_forwards_that_look_or_tabulate():
    """Without noise levels that are known before, or without tables, a network cannot be recorded."""
    network = network_like(embedded_shape())
    video, audio = (on(with_levels(stream)) for stream in inputs(network.config, batch=1))
    ropes = network.prepare(video.positions, audio.positions)
    untold = AV(ropes.video._replace(waves=None), ropes.audio)
    with capturing(), torch.no_grad():
        assert network(video, audio, None, ropes).video.is_meta
        with pytest.raises(RuntimeError, match="capturing"):
            network(video, audio, None, untold)
        with pytest.raises(RuntimeError):
            network(replace(video, levels=None), audio, None, ropes)


def test_clips_of_the_embedded_model_are_made_with_one_recording():
    pipeline = Pipeline.load()
    graphed = GraphedTransformer(pipeline.transformer, recorder=Unread())
    asked = [("a red ball bounces", 1), ("a red ball bounces", 1), ("a small blue cube falls on metal", 2)]
    for prompt, seed in asked:
        made = []
        for forward in (None, graphed):
            pipeline._maker.forward = forward
            made.append(pipeline(prompt, seed=seed, num_inference_steps=4))
        assert torch.equal(made[0].pixels, made[1].pixels)
        torch.testing.assert_close(made[0].waveform, made[1].waveform, atol=1e-4, rtol=1e-4)
    assert graphed.recorder.recorded == 1
    assert graphed.recorder.repeated == 3 * 4 - 1


def test_a_gpu_pool_is_not_asked_for_after_its_last_graph(monkeypatch):
    """PyTorch forgets a pool with its last graph, and takes its name amiss from then on."""
    pools = itertools.count()

    class Graph:
        def pool(self):
            return self.own

        def replay(self):
            pass

    class Recording(contextlib.nullcontext):
        def __init__(self, graph, pool):
            super().__init__()
            graph.own = pool

    monkeypatch.setattr(torch.cuda, "Stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(pools))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    recorder = CudaRecorder()
    first, _ = recorder.record(list)
    second, _ = recorder.record(list)
    assert (first.__self__.own, second.__self__.own) == (0, 0)
    del first, second
    gc.collect()
    third, _ = recorder.record(list)
    assert third.__self__.own == 1


def test_what_is_kept_anew_in_every_step_is_not_another_kind(graphed):
    video, audio = map(with_levels, inputs(config("2.3"), batch=1))
    branches = (Branch(texts=AV(video.text, audio.text)),)
    ropes = graphed.transformer.prepare(video.positions, audio.positions)
    for _ in range(3):
        graphed(video, audio, None, ropes, passes=Passes(branches=branches, kept=Kept()))
    assert (graphed.recorder.recorded, graphed.recorder.repeated) == (1, 2)


def test_a_call_that_decides_by_itself_what_to_compute_is_not_recorded(graphed):
    video, audio = inputs(config("2.3"), batch=1)
    branches = (Branch(texts=AV(video.text, audio.text)),)
    cache = StepCache(CacheRule(threshold=0.1, num_calls=20))
    graphed(video, audio, passes=Passes(branches=branches, cache=cache))
    assert graphed.recorder.recorded == 0
    assert cache.calls == 1


def test_one_stream_alone(graphed):
    video, _ = inputs(config("2.3"), batch=1)
    got = graphed(video, None)
    assert got.audio is None
    assert got.video.shape == video.latents.shape


def test_a_watched_call_is_not_recorded(graphed):
    video, audio = inputs(config("2.3"), batch=1)
    seen = []
    graphed(video, audio, watch=lambda index: seen.append)
    assert seen
    assert graphed.recorder.recorded == 0


@pytest.mark.gpu
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_real_graphs_give_what_the_transformer_gives_clip_after_clip(generation):
    network = transformer(generation).cuda()
    graphed = GraphedTransformer(network)
    for seed in range(3):
        video, audio, _, texts = clip(network, seed)
        video, audio, *texts = (on(thing, "cuda") for thing in (video, audio, *texts))
        given = (video, audio, network.prepare(video.positions, audio.positions), texts)
        check(run(graphed, *given), run(network, *given))
    assert len(graphed.cold_starts) == 2
