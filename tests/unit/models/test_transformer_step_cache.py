"""The step cache: what it reuses, what it never does, and that computed steps stay exact."""

from dataclasses import replace

import pytest
import torch

from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.step_cache import MOST_REUSED, CacheRule, StepCache
from transformer_samples import config, inputs, transformer

SHAPE = config("2.3")
CALLS = 20


def rule(threshold=0.5, **changes):
    return CacheRule(threshold=threshold, num_calls=CALLS, guard=changes.pop("guard", 1e9), **changes)


def step(model, cache, level, branches, by=0.0):
    """Call with all passes; `by` moves the latents."""
    video, audio = (
        replace(
            stream,
            latents=stream.latents + by,
            timesteps=torch.full_like(stream.timesteps, level),
            sigma=torch.full_like(stream.sigma, level),
        )
        for stream in inputs(SHAPE, batch=1)
    )
    with torch.no_grad():
        return model(video, audio, passes=Passes(branches=branches, kept=Kept(), cache=cache))


def branches():
    video, audio = inputs(SHAPE, batch=1)
    texts = AV(video.text, audio.text)
    return tuple(
        Branch(perturbation=perturbation, texts=texts)
        for perturbation in (
            Perturbation(),
            Perturbation(skip_video_self_attention=frozenset({1}), skip_audio_self_attention=frozenset({1})),
            Perturbation(skip_a2v="all", skip_v2a="all"),
        )
    )


def equal(a: AV, b: AV) -> bool:
    return torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio)


@pytest.fixture(scope="module")
def model():
    return transformer("2.3")


def test_steps_that_are_computed_are_exact(model):
    given, cache = branches(), StepCache(rule(threshold=1e-9))
    for i in range(4):
        assert equal(step(model, cache, 0.8 - 0.05 * i, given), step(model, None, 0.8 - 0.05 * i, given))
    assert cache.share == 0
    assert set(cache.computed.values()) == {4}


def test_a_step_like_the_last_is_reused_and_nearly_the_same(model):
    given, cache = branches(), StepCache(rule())
    for i in range(3):
        got = step(model, cache, 0.8 - 1e-5 * i, given)
    assert cache.reused == dict.fromkeys(given, 1)
    wanted = step(model, None, 0.8 - 2e-5, given)
    assert not equal(got, wanted)
    for ours, theirs in ((got.video, wanted.video), (got.audio, wanted.audio)):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01


def test_blocks_are_not_run_when_all_passes_reuse(model):
    given, cache, runs = branches(), StepCache(rule()), []
    hook = model.transformer_blocks[1].register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        for _ in range(3):
            step(model, cache, 0.8, given)
    finally:
        hook.remove()
    assert len(runs) == 2


def test_a_step_that_differs_is_computed(model):
    given, cache = branches(), StepCache(rule(threshold=0.05))
    for by in (0.0, 0.0, 3.0):
        got = step(model, cache, 0.8, given, by)
    assert cache.share == 0
    assert equal(got, step(model, None, 0.8, given, 3.0))


def test_the_first_and_the_last_steps_are_computed(model):
    given, cache = branches()[:1], StepCache(rule(first=4, last=5))
    computed = []
    for _ in range(CALLS):
        before = sum(cache.computed.values())
        step(model, cache, 0.8, given)
        computed.append(sum(cache.computed.values()) > before)
    assert all(computed[:4])
    assert all(computed[-5:])
    assert not all(computed)


def test_never_more_than_the_most_is_reused(model):
    given, cache = branches()[:1], StepCache(rule(threshold=0.9))
    for _ in range(CALLS):
        step(model, cache, 0.8, given)
        assert cache.share <= MOST_REUSED
    assert cache.share > MOST_REUSED - 0.1


def test_blocks_seen_to_change_too_fast_are_computed(model):
    given, cache = branches()[:1], StepCache(rule(threshold=0.5, guard=1e-6))
    for i in range(CALLS):
        step(model, cache, 0.8 - 0.01 * i, given)
    assert cache.share == 0


def test_passes_decide_for_themselves(model):
    cond, perturbed, isolated = branches()
    cache = StepCache(rule())
    for given in ((cond,), (cond,), (cond, isolated)):
        got = step(model, cache, 0.8, given)
    assert cache.reused == {cond: 1}
    assert cache.computed == {cond: 2, isolated: 1}
    plain = step(model, None, 0.8, (cond, isolated))
    torch.testing.assert_close(got.video[1], plain.video[1])
    # A pass that shares its prefix with one that reuses computes the prefix itself.
    got = step(model, cache, 0.8, (cond, perturbed))
    plain = step(model, None, 0.8, (cond, perturbed))
    torch.testing.assert_close(got.video[1], plain.video[1])


def test_items_of_a_batch_keep_their_places(model):
    video, audio = inputs(SHAPE, batch=2)
    given, cache = (Branch(texts=AV(video.text, audio.text)),) * 1, StepCache(rule())
    with torch.no_grad():
        wanted = model(video, audio, passes=Passes(branches=given))
        for _ in range(3):
            got = model(video, audio, passes=Passes(branches=given, cache=cache))
    assert cache.share > 0
    torch.testing.assert_close(got.video, wanted.video)
    torch.testing.assert_close(got.audio, wanted.audio)


@pytest.mark.parametrize(
    ("threshold", "calls", "message"),
    [(0.0, 20, "outside"), (1.0, 20, "0.1 is usual"), (0.1, 8, "needs 10 steps or more, and there are 8")],
)
def test_a_rule_that_makes_no_sense_is_refused(threshold, calls, message):
    with pytest.raises(RequestError, match=message):
        CacheRule(threshold=threshold, num_calls=calls)
