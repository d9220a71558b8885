"""The count of operations agrees with the published table and with torch's own counter."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.flops import forward_flops
from transformer_samples import GENERATIONS, config, inputs, transformer

HEADERS = Path(__file__).parents[2] / "parity" / "headers"


def official(generation):
    table = json.loads(gzip.decompress((HEADERS / f"ltx-{generation}.json.gz").read_bytes()))
    return TransformerConfig.from_header(table["config"]["transformer"])


@pytest.mark.parametrize(
    ("tokens", "linear", "attention", "total"),
    [
        ((14_080, 126), 368.0, 168.7, 536.7),  # 1280x704, 121 frames
        ((32_640, 126), 846.3, 867.4, 1713.7),  # 1920x1088, 121 frames
        ((53_680, 501), 1391.3, 2330.8, 3722.1),  # 1280x704, 481 frames
        ((6_144, 126), 163.5, 35.3, 198.8),  # 768x512, 121 frames
        ((3_520, 126), 95.8, 13.0, 108.8),  # 640x352, 121 frames
    ],
)
def test_the_released_model_computes_what_was_counted(tokens, linear, attention, total):
    count = forward_flops(
        official("2.0"), num_video_tokens=tokens[0], num_audio_tokens=tokens[1], num_text_tokens=1024
    )
    assert count.total_linear / 1e12 == pytest.approx(linear, abs=0.06)
    assert count.total_attention / 1e12 == pytest.approx(attention, abs=0.06)
    assert count.total / 1e12 == pytest.approx(total, abs=0.06)


def test_parts_are_those_of_the_table():
    count = forward_flops(
        official("2.0"), num_video_tokens=14_080, num_audio_tokens=126, num_text_tokens=1024
    )
    parts = {name: n / 1e12 for name, n in count.linear.items()}
    assert parts["video self-attention"] == pytest.approx(90.7, abs=0.06)
    assert parts["video feed-forward"] == pytest.approx(181.4, abs=0.06)
    assert parts["across, on video tokens"] == pytest.approx(45.4, abs=0.06)
    assert count.text_constant / 1e12 == pytest.approx(4.2, abs=0.06)
    assert count.across / 1e12 == pytest.approx(47, abs=0.3)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_count_is_that_of_the_network_itself(generation):
    shape, model = config(generation), transformer(generation)
    video, audio = inputs(shape, batch=1)
    plain = torch.nn.attention.sdpa_kernel(
        torch.nn.attention.SDPBackend.MATH
    )  # the only one counted on a CPU
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        model(video, audio)
    count = forward_flops(shape, num_video_tokens=8, num_audio_tokens=6, num_text_tokens=5)
    measured = counter.get_flop_counts()
    blocks = sum(
        sum(measured[f"AVTransformer.transformer_blocks.{index}"].values())
        for index in range(shape.num_layers)
    )
    assert count.in_blocks == blocks
    outer = ((model.patchify_proj, model.proj_out), (model.audio_patchify_proj, model.audio_proj_out))
    assert count.linear["in and out"] == sum(
        2 * n * layer.weight.numel() for n, layers in zip((8, 6), outer, strict=True) for layer in layers
    )


def test_one_stream_alone_has_nothing_across():
    count = forward_flops(config("2.3"), num_video_tokens=0, num_audio_tokens=6, num_text_tokens=5)
    assert count.across == 0
    assert not any("video" in name for name in (*count.linear, *count.attention))
