"""Graphs with a stand-in for CUDA: recordings that run the function again, on static tensors, in place."""

from dataclasses import replace

import pytest
import torch

from soundstage.core.types import AV
from soundstage.models.transformer.inputs import Branch, Passes
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.modulation import NoiseLevels
from soundstage.models.transformer.step_cache import CacheRule, StepCache
from soundstage.runtime.cuda_graphs import GraphedTransformer
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
    assert (graphed.recorder.recorded, graphed.recorder.repeated) == (1, 3)
    assert [start.what for start in graphed.cold_starts] == ["recording a CUDA graph"]
    assert graphed.cold_starts[0].seconds > 0


def test_another_prompt_or_size_is_recorded_anew(graphed):
    video, audio = inputs(config("2.3"), batch=1)
    graphed(video, audio)
    other = replace(video, context=video.context * 2)
    with torch.no_grad():
        wanted = graphed.transformer(other, audio)
    assert torch.equal(graphed(other, audio).video, wanted.video)
    two = inputs(config("2.3"), batch=2)
    assert graphed(*two).video.shape[0] == 2
    assert graphed.recorder.recorded == 3
    graphed(video, audio)
    assert graphed.recorder.recorded == 3


def test_changed_weights_are_recorded_anew(graphed):
    video, audio = inputs(config("2.3"), batch=1)
    before = graphed(video, audio).video
    weight = graphed.transformer.proj_out.weight
    with torch.no_grad():
        weight.mul_(2)
        try:
            after = graphed(video, audio).video
        finally:
            weight.mul_(0.5)
    assert graphed.recorder.recorded == 2
    assert not torch.equal(before, after)


def test_what_is_kept_anew_in_every_step_is_not_another_kind(graphed):
    video, audio = inputs(config("2.3"), batch=1)
    branches = (Branch(texts=AV(video.text, audio.text)),)
    for _ in range(3):
        graphed(video, audio, passes=Passes(branches=branches, kept=Kept()))
    assert (graphed.recorder.recorded, graphed.recorder.repeated) == (1, 3)


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
def test_a_real_graph_gives_what_the_transformer_gives():
    network = transformer("2.3").cuda()
    video, audio = (
        replace(
            stream,
            latents=stream.latents.cuda(),
            timesteps=stream.timesteps.cuda(),
            sigma=stream.sigma.cuda(),
            positions=stream.positions.cuda(),
            context=stream.context.cuda(),
            levels=NoiseLevels(stream.sigma.cuda(), None),
        )
        for stream in inputs(config("2.3"), batch=1)
    )
    ropes, graphed = network.prepare(video.positions, audio.positions), GraphedTransformer(network)
    for step in range(3):
        given = noisier(video, 0.1 * step), noisier(audio, 0.2 * step)
        got = graphed(*given, None, ropes)
        with torch.no_grad():
            wanted: AV = network(*given, None, ropes)
        assert torch.equal(got.video, wanted.video)
    assert len(graphed.cold_starts) == 1
