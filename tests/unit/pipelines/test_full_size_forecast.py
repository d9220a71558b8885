"""Predicted peaks are within 15 % of what full-size networks hold on the `meta` device, phase by phase."""

import pytest
import torch

import full_size
from soundstage.checkpoints.released import planned_configs
from soundstage.core.types import AV
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.transformer.step_cache import CacheRule, StepCache
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.models.video_vae.decode_plan import DecodePlan, decoding_bytes, ways_to_decode
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.pipelines.forecast import transformer_activations
from soundstage.pipelines.kept_weights import PACKED_COPIES
from soundstage.pipelines.picture_costs import (
    UPSAMPLER_BYTES,
    UPSAMPLER_WIDTH,
    encoding_bytes,
    upsampling_bytes,
)
from soundstage.pipelines.sound_costs import sounding_bytes, vocoding_operations

TOLERANCE = 0.15
HD = AV(16 * 22 * 40, 126)  # tokens of 5 s at 1280x704
SMALL = AV(5 * 16 * 24, 35)  # of 33 frames at 768x512


def check(measured, predicted):
    print(f"{measured / 1e9:.3f} GB measured, {predicted / 1e9:.3f} GB predicted")
    assert predicted == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("generation", "quantize", "num_passes", "tokens"),
    [
        ("2.0", None, 4, HD),
        ("2.3", None, 1, HD),
        ("2.3", None, 4, HD),
        ("2.3", None, 4, SMALL),
        ("2.3", "int8", 4, SMALL),
        ("2.3", "int4", 1, SMALL),
        ("2.3", "int4", 4, SMALL),
    ],
    ids=str,
)
def test_the_transformer(generation, quantize, num_passes, tokens):
    model = full_size.transformer(generation, quantize)
    copies = {None: 0, "int8": 1, "int4": PACKED_COPIES}[quantize]
    predicted = transformer_activations(
        model.config,
        tokens,
        2,
        num_rows=num_passes,
        num_texts=min(num_passes, 2),
        text_length=full_size.TEXT,
        widened=int(copies * 2 * model.config.video.dim * model.config.video.ff_dim),
    )
    check(full_size.denoising(model, tokens, num_passes=num_passes), predicted)


@pytest.mark.parametrize(
    ("generation", "num_clips", "rows_at_once"), [("2.0", 1, 2), ("2.3", 2, 1), ("2.3", 2, 4)]
)
def test_rows_that_go_together(generation, num_clips, rows_at_once):
    model = full_size.transformer(generation)
    predicted = transformer_activations(
        model.config,
        SMALL,
        2,
        num_rows=4 * num_clips,
        rows_at_once=rows_at_once,
        num_texts=2 * num_clips,
        text_length=full_size.TEXT,
    )
    measured = full_size.denoising(model, SMALL, num_clips=num_clips, rows_at_once=rows_at_once)
    check(measured, predicted)


def test_branches_of_loras():
    model = full_size.beside(full_size.transformer.__wrapped__("2.3"), rank=384)
    predicted = transformer_activations(
        model.config, SMALL, 2, num_rows=4, num_texts=2, text_length=full_size.TEXT, has_branches=True
    )
    check(full_size.denoising(model, SMALL), predicted)


def test_texts_that_are_kept():
    model = full_size.transformer("2.0")
    texts = {"num_rows": 4, "num_texts": 2, "text_length": full_size.TEXT}
    predicted = transformer_activations(model.config, HD, 2, **texts, keep_texts=True)
    check(full_size.denoising(model, HD, num_passes=4, keeps_texts=True), predicted)


@pytest.mark.parametrize("num_passes", [1, 4])
def test_what_a_step_cache_keeps(num_passes, monkeypatch):
    monkeypatch.setattr("soundstage.models.transformer.step_cache._change", lambda new, old: 1.0)
    model, cache = full_size.transformer("2.3"), StepCache(CacheRule(threshold=0.1, num_calls=20))
    predicted = transformer_activations(
        model.config,
        HD,
        2,
        num_rows=num_passes,
        num_texts=min(num_passes, 2),
        text_length=full_size.TEXT,
        has_step_cache=True,
    )
    check(full_size.denoising(model, HD, num_passes=num_passes, cache=cache), predicted)


@pytest.mark.parametrize("chunk", [16, 8, 4])
@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_decoding_frames_that_are_whole(generation, chunk):
    vae, plan = full_size.video_vae(generation), DecodePlan(chunk=chunk, rows=22, columns=40)
    check(full_size.decoding(vae, (16, 22, 40), plan), decoding_bytes(vae.config, (16, 22, 40), plan, 2))


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param((16, 22, 22), id="one"),
        pytest.param((16, 22, 40), id="two", marks=pytest.mark.slow),
    ],
)
def test_decoding_tiles(cells):
    vae, plan = full_size.video_vae("2.3"), DecodePlan(chunk=1, rows=22, columns=22)
    check(full_size.decoding(vae, cells, plan), decoding_bytes(vae.config, cells, plan, 2))


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_ways_to_decode_become_smaller_and_the_exact_ones_come_first(generation):
    config = full_size.video_vae(generation).config
    ways = ways_to_decode(config, (16, 34, 60), 2)
    sizes = [way.num_bytes for way in ways]
    assert sizes == sorted(set(sizes), reverse=True)
    exact = [way.is_exact for way in ways]
    assert exact == sorted(exact, reverse=True)
    assert [way.chunk for way in ways if way.is_exact] == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("clip", [(121, 704, 1280), (33, 512, 768), (1, 704, 1280)], ids=repr)
def test_encoding(clip):
    vae = full_size.video_vae("2.3")
    frames, height, width = clip
    check(full_size.encoding(vae, *clip), encoding_bytes(vae.config, frames, (height, width), 2))


@pytest.mark.parametrize("generation", ["2.0", "2.3"])
def test_sound(generation):
    config = planned_configs()[generation]
    codec = AudioVAEConfig.from_header(config["audio_vae"])
    vocoder = VocoderConfig.from_header(config["vocoder"])
    check(full_size.sounding(generation, 20), 20 * sounding_bytes(codec, vocoder))


@pytest.mark.parametrize(
    ("generation", "operations"), [("2.0", 1.35e11 * 24_000 / 23_280), ("2.3", 2.19e11 * 48_000 / 46_560)]
)
def test_operations_of_vocoders_are_those_that_torch_counts(generation, operations):
    """Counted once by `FlopCounterMode`, for 97 spectra."""
    vocoder = VocoderConfig.from_header(planned_configs()[generation]["vocoder"])
    assert vocoding_operations(vocoder) == pytest.approx(operations, rel=0.05)


def test_upsampling():
    """The released file's width is not among its known configurations; its size is that of this one."""
    network = full_size.part(
        lambda: LatentUpsampler(LatentUpsamplerConfig(mid_channels=UPSAMPLER_WIDTH)), torch.bfloat16
    )
    assert sum(weight.nbytes for weight in network.parameters()) == pytest.approx(UPSAMPLER_BYTES, rel=1e-3)
    latents = torch.empty(1, 128, 16, 11, 20, dtype=torch.bfloat16, device="meta")
    check(full_size.live(lambda: network(latents), network), upsampling_bytes(16 * 11 * 20, 2))
