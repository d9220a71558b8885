"""Clips that are made in one batch."""

import pytest
import torch

import tiny
from soundstage.core.errors import RequestError
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.request import GenerationRequest

FIELDS = {"num_inference_steps": 2, "num_frames": 9, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.load(
        tiny.write_embedded(tmp_path_factory.mktemp("model") / "m.safetensors"), device="cpu"
    )


def request(prompt="a red ball", seed=1, **fields):
    return GenerationRequest.of({"prompt": prompt, "seed": seed, **FIELDS, **fields})


def test_each_clip_is_what_it_would_be_alone(pipeline):
    requests = [request(), request("a blue cube on a drum", 7), request(seed=3)]
    together = pipeline.together(requests)
    assert [clip.request for clip in together] == requests
    for clip, wanted in zip(together, requests, strict=True):
        alone = pipeline(wanted)
        torch.testing.assert_close(clip.pixels, alone.pixels, rtol=0, atol=1e-3)  # other sums, other rounding
        torch.testing.assert_close(clip.waveform, alone.waveform, rtol=0, atol=1e-3)
    assert not torch.allclose(together[0].pixels, together[2].pixels, atol=1e-2)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([request(num_frames=17)], "prompt and seed only"),
        ([request(prompt_at=("0-0.1s:a cube",))], "prompt and seed only"),
        ([], "one prompt each"),
    ],
)
def test_what_cannot_be_one_batch_is_refused(pipeline, others, message):
    first = request() if others else request(no_audio="discard")
    with pytest.raises(RequestError, match=message):
        pipeline.together([first, *others])


def test_nothing_is_no_batch(pipeline):
    with pytest.raises(RequestError, match="no request"):
        pipeline.together([])
