"""The transformer against another implementation, diffusers, on the same tiny random weights."""

import pytest
import torch

from diffusers_pairs import GENERATIONS, call_transformer, transformer_pair
from soundstage.models.transformer.inputs import Perturbation, StreamInput

HEADER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 12,
    "audio_cross_attention_dim": 24,
    "num_layers": 3,
    "in_channels": 6,
    "out_channels": 6,
    "audio_in_channels": 8,
    "audio_out_channels": 8,
}
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}  # float32, another order of operations


def build_pair(generation: str):
    return transformer_pair(HEADER, generation)


def make_inputs(generation: str) -> tuple[StreamInput, StreamInput]:
    torch.manual_seed(1)
    sigma = torch.tensor([0.83, 0.4])
    text = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    widths = (20, 20) if generation == "2.0" else (32, 24)
    streams = []
    for n, channels, width, axes in ((8, 6, widths[0], 3), (6, 8, widths[1], 1)):
        starts = torch.rand(2, axes, n, 1) * torch.tensor([4.0, 300, 300])[:axes, None, None]
        streams.append(
            StreamInput(
                latents=torch.randn(2, n, channels),
                timesteps=sigma[:, None].expand(2, n),
                sigma=sigma,
                positions=torch.cat([starts, starts + 1], dim=-1),
                context=torch.randn(2, 5, width),
                context_mask=text,
                keyframe_mask=torch.zeros(2, n, 1),  # diffusers stores keyframe embeddings without using them
            )
        )
    return streams[0], streams[1]


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_velocities_equal_those_of_diffusers(generation: str):
    ours, theirs = build_pair(generation)
    video, audio = make_inputs(generation)
    velocities = ours(video, audio)
    expected = call_transformer(theirs, video, audio)
    torch.testing.assert_close(velocities.video, expected[0], **TOLERANCE)
    torch.testing.assert_close(velocities.audio, expected[1], **TOLERANCE)


@pytest.mark.parametrize("generation", GENERATIONS)
@torch.no_grad()
def test_isolated_streams_equal_those_of_diffusers(generation: str):
    ours, theirs = build_pair(generation)
    video, audio = make_inputs(generation)
    velocities = ours(video, audio, [Perturbation(skip_a2v="all", skip_v2a="all")] * 2)
    expected = call_transformer(theirs, video, audio, isolate_modalities=True)
    torch.testing.assert_close(velocities.video, expected[0], **TOLERANCE)
    torch.testing.assert_close(velocities.audio, expected[1], **TOLERANCE)


@torch.no_grad()
def test_value_passthrough_equals_that_of_diffusers():
    ours, theirs = build_pair("2.3")
    video, audio = make_inputs("2.3")
    stg = Perturbation(skip_video_self_attention=frozenset([1]), skip_audio_self_attention=frozenset([1]))
    velocities = ours(video, audio, [stg, stg])
    expected = call_transformer(theirs, video, audio, spatio_temporal_guidance_blocks=[1])
    torch.testing.assert_close(velocities.video, expected[0], **TOLERANCE)
    torch.testing.assert_close(velocities.audio, expected[1], **TOLERANCE)
