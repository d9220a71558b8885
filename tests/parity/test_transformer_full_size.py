"""Full-size transformers, built without memory, against the key tables of the official files."""

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from soundstage.models.transformer.config import STREAMS, TransformerConfig
from soundstage.models.transformer.model import AVTransformer

HEADERS = Path(__file__).parent / "headers"
PREFIX = "model.diffusion_model."
# Parameters of video, audio and cross-modal layers; number of tensors.
PUBLISHED = {
    "2.0": (13_041_520_768, 3_265_980_544, 2_568_673_280, 3510),
    "2.3": (13_124_316_288, 3_286_408_320, 2_578_113_536, 4186),
    "2.5": (13_123_337_344, 3_286_408_320, 2_578_113_536, 4091),
}
TOTALS = {"2.0": 18_876_174_592, "2.3": 18_988_838_144, "2.5": 18_987_859_200}


def read_header(generation: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((HEADERS / f"ltx-{generation}.json.gz").read_bytes()))


@functools.cache
def full_size(generation: str, streams: tuple = STREAMS) -> AVTransformer:
    section = read_header("2.3" if generation == "2.5" else generation)["config"]["transformer"]
    if generation == "2.5":
        section |= {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
    with torch.device("meta"):
        return AVTransformer(TransformerConfig.from_header(section), streams)


@pytest.mark.parametrize("generation", PUBLISHED)
def test_parameters_and_tensors_are_as_many_as_published(generation: str):
    model = full_size(generation)
    *counts, num_tensors = PUBLISHED[generation]
    assert model.parameter_counts() == dict(zip(("video", "audio", "cross"), counts, strict=True))
    assert sum(p.numel() for p in model.parameters()) == TOTALS[generation]
    assert len(model.state_dict()) == num_tensors


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_names_and_shapes_are_those_of_the_official_file(generation: str):
    published = {
        name.removeprefix(PREFIX): tuple(shape)
        for name, shape in read_header(generation)["tensors"].items()
        if name.startswith(PREFIX) and "embeddings_connector" not in name
    }
    assert {name: tuple(t.shape) for name, t in full_size(generation).state_dict().items()} == published


def test_2_5_differs_from_2_3_by_video_feed_forward_biases_and_keyframes():
    before, after = (full_size(generation).state_dict().keys() for generation in ("2.3", "2.5"))
    biases = {f"transformer_blocks.{i}.ff.net.{layer}.bias" for i in range(48) for layer in ("0.proj", "2")}
    assert before - after == biases
    assert after - before == {"keyframes_abs_pos_embedding"}


def test_sound_alone_needs_a_fraction_of_the_memory():
    audio = full_size("2.3", ("audio",))
    assert sum(p.numel() for p in audio.parameters()) == PUBLISHED["2.3"][1]


@pytest.mark.parametrize(
    ("num_video_tokens", "petaflops"), [(6_144, 0.199), (8_160, 0.275), (14_080, 0.537), (32_640, 1.714)]
)
def test_cost_of_a_forward_is_as_published(num_video_tokens: int, petaflops: float):
    """121 frames at 24 fps, from 768x512 to 1920x1088."""
    got = full_size("2.0").flops(num_video_tokens, 126, 1024)
    assert round(got / 1e15, 3) == petaflops
