"""A model is placed for the clip that is made: for what is given, for the host's memory, and again."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import tiny
from media_samples import write_video
from soundstage.core.errors import RequestError, ResourceError
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.decode_plan import ways_to_decode
from soundstage.pipelines import opening, placement
from soundstage.pipelines.batch import read_jobs, requests_of
from soundstage.pipelines.compute import Compute
from soundstage.pipelines.fitting import BLENDED, fit
from soundstage.pipelines.forecast import AUDIO_VAE, UPSAMPLER, VIDEO_VAE, VOCODER, Setup
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.placed import Placed
from soundstage.pipelines.placement import place
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.sketch import open_or_sketch, text_tower
from soundstage.runtime.rates import known_gpu
from soundstage.runtime.residency import Residency

GB = 10**9


def setup_of(model, gpu="RTX 4070", **fields):
    checkpoint, _ = open_or_sketch(model)
    values = {"placing": Placing(quantize="fp8"), "rates": known_gpu(gpu), "dtype": torch.bfloat16, **fields}
    return Setup(checkpoint=checkpoint, tower=text_tower(checkpoint, None), is_fused=True, **values)


@pytest.fixture(scope="module")
def released():
    return setup_of("ltx-2-19b-dev")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("given") / "clip.mp4")


def request(**fields):
    return GenerationRequest(**{"prompt": "a", "width": 1280, "height": 704, "num_frames": 121, **fields})


def phases(fitted):
    return {planned.phase.name: planned for planned in fitted.device.phases}


def test_a_given_video_decides_the_size_and_is_encoded(released, video):
    fitted = fit(released, GenerationRequest(prompt="a", video=video), 24 * GB)
    plain = fit(released, GenerationRequest(prompt="a"), 24 * GB)
    assert fitted.plan.canvas.num_frames < plain.plan.canvas.num_frames
    assert {"encode picture", "encode sound"} <= phases(fitted).keys()
    assert phases(fitted)["decode sound"].phase.parts == (AUDIO_VAE, VOCODER)  # the picture is there already
    assert "encode picture" not in phases(plain)


def test_encoding_counts_a_tile_and_all_pictures(released, video):
    one = fit(released, request(image=str(video)), 24 * GB)
    many = fit(released, request(reference_video=str(video)), 24 * GB)
    assert phases(one)["encode picture"].activations < 0.2 * GB
    assert phases(many)["encode picture"].activations == pytest.approx(5.1 * GB, rel=0.05)
    assert phases(many)["denoise"].activations > 1.8 * phases(one)["denoise"].activations


def test_picture_and_sound_are_decoded_at_the_same_time(released):
    decode = phases(fit(released, request(), 24 * GB))["decode"]
    assert set(decode.phase.parts) == {VIDEO_VAE, AUDIO_VAE, VOCODER}


@pytest.mark.parametrize("budget", [10, 12, 16, 24])
@pytest.mark.parametrize("model", ["ltx-2-19b-dev", "ltx-2.3-22b-dev"])
def test_there_is_room_for_networks_that_are_used_together(model, budget):
    fitted = fit(setup_of(model), request(plan="two_stage"), budget * GB)
    for phase in fitted.device.phases if fitted.device.kind != "resident" else ():
        whole = [name for name in phase.phase.parts if name not in fitted.device.streamed]
        assert fitted.device.visitors >= sum(fitted.parts[name].num_bytes for name in whole)
    assert UPSAMPLER in fitted.parts


@pytest.mark.parametrize("upsampler", ["pixels", "bicubic"])
def test_stages_without_a_trained_upsampler_are_planned(released, upsampler):
    fitted = fit(released, request(plan="two_stage", upsampler=upsampler), 24 * GB)
    assert UPSAMPLER not in fitted.parts
    assert phases(fitted)["upsample"].phase.parts == ((VIDEO_VAE,) if upsampler == "pixels" else ())


def test_full_hd_fits_12_gb_with_whole_frames(released):
    fitted = fit(released, request(width=1920, height=1088), 12 * GB)
    decode = phases(fitted)["decode"]
    assert decode.is_exact
    assert BLENDED not in fitted.plan.notes
    vae = VideoVAEConfig.from_header(released.checkpoint.section("vae"))
    smallest = min(way.num_bytes for way in ways_to_decode(vae, fitted.plan.canvas.grid.latent_shape, 2))
    assert smallest < decode.activations < fitted.device.budget - decode.weights


def test_tiles_that_are_blended_are_a_note(released):
    large = request(width=3840, height=2176, num_frames=33)
    fitted = fit(released, large, 24 * GB)
    assert phases(fitted)["decode"].is_exact
    with pytest.raises(ResourceError, match=r"at least (\d+\.\d) GB") as caught:
        fit(released, large, 2 * GB)
    least = float(re.search(r"at least (\d+\.\d) GB", str(caught.value))[1]) + 0.1
    fitted = fit(released, large, int(least * GB))
    assert not phases(fitted)["decode"].is_exact
    assert BLENDED in fitted.plan.notes


def test_blocks_wait_on_disk_where_host_memory_is_small(released):
    small, large = (dataclasses.replace(released, host_budget=n * GB) for n in (12, 64))
    assert fit(small, request(), 12 * GB).device.on_disk
    assert not fit(large, request(), 12 * GB).device.on_disk
    with pytest.raises(ResourceError, match=r"2\.0 GB of host memory do not suffice"):
        fit(dataclasses.replace(released, host_budget=2 * GB), request(), 12 * GB)


def test_decoders_take_as_long_as_their_own_operations(tmp_path):
    small = tiny.write_embedded(tmp_path / "m.safetensors")
    times = {}
    for model in ("embedded", "ltx-2-19b-dev", small):
        setup = setup_of(model, placing=Placing(), dtype=torch.float32)
        fitted = fit(setup, request(width=64, height=64, num_frames=49), 10**12)
        times[model] = phases(fitted)["decode"].seconds
    assert times[small] < times["embedded"] < 0.2 * times["ltx-2-19b-dev"]
    assert times["embedded"] == pytest.approx(38e9 / known_gpu("RTX 4070").convolution, rel=0.2)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an RTX 4070, as far as placing asks for it."""
    monkeypatch.setattr(placement, "rates_of", lambda _: known_gpu("RTX 4070"))
    monkeypatch.setattr(placement, "usable_memory", lambda _: 12 * GB)
    monkeypatch.setattr(placement, "host_budget", lambda: 64 * GB)
    monkeypatch.setattr(
        placement, "why_not_triton", lambda device: None if device.type == "cuda" else "no GPU"
    )


def placed_for(*requests, placing=None, device="cuda", compute=None):
    checkpoint, _ = open_or_sketch("ltx-2-19b-dev")
    return place(
        checkpoint,
        placing or Placing(quantize="fp8"),
        device=torch.device(device),
        dtype=torch.bfloat16,
        text_encoder=None,
        requests=requests,
        compute=compute,
    )


@pytest.mark.usefixtures("gpu")
def test_the_largest_of_several_clips_decides_and_what_cannot_be_made_does_not():
    small, large = request(num_frames=25), request(width=1920, height=1088)
    impossible = request(width=7680, height=4352, num_frames=1201)
    plans = [placed_for(*some).plan for some in ([small], [large], [small, impossible, large])]
    staying = [plan.streamed["transformer"] for plan in plans]
    assert staying[0] > staying[1] == staying[2]
    with pytest.raises(ResourceError, match="do not suffice"):
        placed_for(impossible)


@pytest.mark.usefixtures("gpu")
def test_memory_that_the_device_does_not_have_is_refused():
    with pytest.raises(RequestError, match=r"vram=16GB is more than RTX 4070 has: 12 GB"):
        placed_for(placing=Placing(vram="16GB"))
    with pytest.raises(RequestError, match=r"vram=1MB is about the memory of a GPU"):
        placed_for(placing=Placing(vram="1MB"), device="cpu")


@pytest.mark.usefixtures("gpu")
def test_it_is_placed_for_the_kernels_that_will_run():
    computes = (None, Compute(kernels="torch"), Compute(compile="blocks"), Compute(compile="graphs"))
    placed = [placed_for(request(), compute=compute) for compute in computes]
    assert [one.setup.is_fused for one in placed] == [True, False, False, True]
    staying = [one.plan.streamed["transformer"] for one in placed]
    assert staying[0] == staying[3] > staying[1] == staying[2]
    assert not placed_for(request(), device="cpu").setup.is_fused


def test_kernels_that_cannot_run_are_refused_before_anything_is_loaded(tiny_model, monkeypatch):
    monkeypatch.setattr(opening, "load_checkpoint", None)
    with pytest.raises(RequestError, match="kernels 'triton' cannot run: the device is cpu, not a GPU"):
        Pipeline.load(tiny_model, device="cpu", compute=Compute(kernels="triton"))


@pytest.mark.usefixtures("gpu")
def test_the_budget_of_decoding_comes_from_the_plan_and_follows_vram():
    budgets = [placed_for(placing=Placing(quantize="fp8", vram=v)).plan for v in (None, "9GB")]
    for plan in budgets:
        decode = plan.phases[-1]
        assert plan.room <= plan.budget - plan.reserved - decode.weights
    assert budgets[1].budget == 9 * GB


SMALL = GenerationRequest(prompt=tiny.CAPTIONS[0], width=32, height=32, num_frames=9, num_inference_steps=1)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny model whose networks take turns; on the CPU, so that it can run."""
    file = tiny.write_embedded(tmp_path_factory.mktemp("model") / "m.safetensors")
    loaded = Pipeline.load(file, device="cpu")
    setup = setup_of(file, placing=Placing(), dtype=torch.float32, rates=known_gpu("H100"))
    resident = fit(setup, SMALL, GB).device
    plan = fit(setup, SMALL, resident.peak - 1).device
    assert plan.kind == "turns"
    placed = Placed(plan=plan, setup=setup, residency=Residency(torch.device("cpu"), plan.visitors))
    components = placed.take(loaded.components, torch.device("cpu"))
    return Pipeline(components, prompts=loaded.prompts, placed=placed)


def test_a_larger_clip_than_planned_gets_room_or_an_error_that_says_what_to_do(pipeline):
    before = pipeline.components.residency.budget, pipeline.components.decode_budget
    pipeline.plan(dataclasses.replace(SMALL, num_frames=17))
    after = pipeline.components.residency.budget, pipeline.components.decode_budget
    assert after[0] < before[0]
    assert pipeline._maker.components is pipeline.components
    with pytest.raises(ResourceError, match=r"at least .* load the model for this clip"):
        pipeline.plan(dataclasses.replace(SMALL, width=1024, height=1024, num_frames=97))
    pipeline(SMALL)
    assert (pipeline.components.residency.budget, pipeline.components.decode_budget) == before


def test_a_clip_says_that_its_tiles_are_blended(pipeline, monkeypatch):
    assert BLENDED not in pipeline.plan(SMALL).notes
    monkeypatch.setattr(Placed, "blends", True)
    assert BLENDED in pipeline(SMALL).notes


def test_a_batch_is_placed_for_its_kinds_of_clips(tmp_path: Path):
    lines = [
        '{"prompt": "a", "seed": 1, "num_frames": 9}',
        '{"prompt": "b", "seed": 2, "num_frames": 9}',
        '{"prompt": "c", "num_frames": 17}',
        '{"prompt": "d", "num_frame": 17}',
    ]
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n".join(lines))
    assert [one.num_frames for one in requests_of(read_jobs(file, "embedded"))] == [9, 17]


def test_a_clip_that_the_machine_cannot_hold_is_refused_on_a_cpu(tmp_path, monkeypatch):
    pipeline = Pipeline.load(tiny.write_embedded(tmp_path / "tiny.safetensors"), device="cpu")
    clip = GenerationRequest(prompt="a", width=128, height=128, num_frames=9)
    pipeline.plan(clip)
    monkeypatch.setattr(placement, "available_memory", lambda: 10**6)
    with pytest.raises(ResourceError, match=r"takes \d\.\d GB beside the weights, and 0\.0 GB are available"):
        pipeline.plan(clip)
