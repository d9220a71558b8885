import pytest
import torch

from soundstage import Pipeline
from soundstage.core.errors import RequestError
from soundstage.pipelines.request import GenerationRequest
from soundstage.runtime.distributed import Group, Team

SMALL = {"width": 16, "height": 16, "num_frames": 9, "seed": 3}
PLAIN = {"modality_scale": 1.0, "audio_modality_scale": 1.0}  # random weights: what it amplifies is noise
PROMPT = "a red ball bounces on a wooden floor"


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.load(tiny_model, device="cpu")


def test_it_is_off_by_default():
    assert GenerationRequest(prompt=PROMPT).step_cache == 0


def test_a_threshold_that_is_none_is_refused():
    with pytest.raises(RequestError, match=r"step_cache=1.5 is outside \[0, 1\); 0 is off, 0.1 is usual"):
        GenerationRequest(prompt=PROMPT, step_cache=1.5)


def test_too_few_steps_are_refused(pipeline):
    request = GenerationRequest(prompt=PROMPT, step_cache=0.1, num_inference_steps=6, **SMALL)
    with pytest.raises(RequestError, match="needs a stage of 10 steps or more, and the longest has 6"):
        pipeline.plan(request)


@pytest.mark.parametrize("team", [Team(sequence=Group(rank=0, size=2)), Team(shards_weights=True)])
def test_processes_that_compute_a_pass_together_have_no_cache(pipeline, team, monkeypatch):
    """Each would decide by its own part, and one would wait for the others forever."""
    monkeypatch.setattr(pipeline._maker, "team", team)
    request = GenerationRequest(prompt=PROMPT, step_cache=0.1, num_inference_steps=14, **SMALL)
    with pytest.raises(RequestError, match="step_cache does not go with sequence_parallel or shard_weights"):
        pipeline.plan(request)


def test_blocks_are_left_out_and_the_clip_stays_close(pipeline):
    runs = []
    last = pipeline.transformer.transformer_blocks[-1]
    hook = last.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        plain = pipeline(PROMPT, num_inference_steps=14, **SMALL, **PLAIN)
        num_plain = len(runs)
        cached = pipeline(PROMPT, num_inference_steps=14, step_cache=0.9, **SMALL, **PLAIN)
    finally:
        hook.remove()
    assert num_plain == 14
    assert 9 <= len(runs) - num_plain < 14
    assert cached.request.step_cache == 0.9
    assert not torch.equal(cached.pixels, plain.pixels)
    assert float((cached.pixels - plain.pixels).norm() / plain.pixels.norm()) < 0.2
