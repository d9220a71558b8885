"""How many passes of a guided step go through a layer together: what gains by it and has room."""

import dataclasses

import pytest
import torch

import tiny
from setups import setup_of
from soundstage.core.errors import ResourceError
from soundstage.pipelines import batching, placement
from soundstage.pipelines.batching import CPU_NUMBERS, GPU_NUMBERS, batch_sizes, said
from soundstage.pipelines.fitting import fit
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.sketch import open_or_sketch

GB = 10**9
SCALES = {"guidance_scale": 3.0, "stg_scale": 1.0, "stg_blocks": (1,), "modality_scale": 2.0}
REQUEST = GenerationRequest(
    prompt=tiny.CAPTIONS[0], width=32, height=32, num_frames=9, num_inference_steps=1, seed=3, **SCALES
)


@pytest.mark.parametrize(
    ("num_rows", "num_numbers", "expected"),
    [
        (4, CPU_NUMBERS // 4, (4, 2, 1)),
        (4, CPU_NUMBERS // 4 + 1, (2, 1)),
        (4, CPU_NUMBERS // 2 + 1, (1,)),
        (3, CPU_NUMBERS // 3, (3, 2, 1)),
        (1, 1, (1,)),
        (12, CPU_NUMBERS // 6, (6, 4, 3, 2, 1)),
    ],
)
def test_batches_are_even_and_no_larger_than_gains_by_it(num_rows, num_numbers, expected):
    assert batch_sizes(num_rows, num_numbers, is_gpu=False) == expected


def test_ways_to_batch_are_those_of_every_number_of_batches():
    for num_rows in range(1, 60):
        wanted = sorted({-(-num_rows // batches) for batches in range(1, num_rows + 1)} - {1}, reverse=True)
        for most in range(1, 70):
            fitting = [size for size in wanted if size <= most]
            assert batch_sizes(num_rows, CPU_NUMBERS // most, is_gpu=False) == (*fitting, 1)


def test_no_more_ways_are_tried_than_there_are():
    assert batch_sizes(10**15, CPU_NUMBERS // 3, is_gpu=False) == (3, 2, 1)


def test_on_a_gpu_a_batch_never_takes_what_one_row_at_720p_does():
    hd = 16 * 22 * 40 * 4096 + 126 * 2048
    assert batch_sizes(4, hd, is_gpu=True) == (1,)
    assert hd > GPU_NUMBERS
    assert batch_sizes(4, 16 * 16 * 24 * 4096 + 126 * 2048, is_gpu=True) == (2, 1)  # 768x512, 5 s


def test_what_goes_together_is_said():
    assert said(4, 1, 4) == "4 passes, in one batch"
    assert said(4, 1, 2) == "4 passes, in batches of 2"
    assert said(4, 1, 1) == "4 passes, one at a time"
    assert said(1, 1, 1) == "1 pass"
    assert said(1, 3, 2) == "1 pass of each of 3 clips, in batches of 2"


@pytest.fixture(scope="module")
def released():
    checkpoint, _ = open_or_sketch("ltx-2-19b-dev")
    return setup_of(
        checkpoint, gpu="RTX 5090", placing=Placing(quantize="fp8"), dtype=torch.bfloat16, is_fused=True
    )


def clip(**fields):
    return GenerationRequest(prompt="a", **{"width": 768, "height": 512, "num_frames": 121, **fields})


def test_the_plan_batches_passes_where_there_is_room_and_moves_no_weights_for_it(released, monkeypatch):
    fitted = fit(released, clip(), 32 * GB)
    (denoising,) = (one for one in fitted.device.phases if one.phase.name == "denoise")
    assert fitted.rows_at_once == {"generate": 2}
    assert (denoising.phase.num_rows, denoising.rows_at_once) == (4, 2)
    monkeypatch.setattr(batching, "GPU_NUMBERS", 0)
    alone = fit(released, clip(), 32 * GB)
    assert alone.rows_at_once == {"generate": 1}
    assert (alone.device.kind, alone.device.streamed) == (fitted.device.kind, fitted.device.streamed)
    (waiting,) = (one for one in alone.device.phases if one.phase.name == "denoise")
    assert denoising.activations - waiting.activations == pytest.approx(7 * 2 * 25.4e6, rel=0.01)
    monkeypatch.undo()
    tight = fit(released, clip(), int(23.5 * GB))  # weights and kept texts leave no room for a second row
    assert tight.rows_at_once == {"generate": 1}
    assert tight.device.peak > 23 * GB


def test_each_stage_has_its_own_batches(released):
    two = clip(width=1280, height=704, plan="two_stage")
    assert fit(released, two, 32 * GB).rows_at_once == {"generate": 2, "refine": 1}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.load(tiny.write_embedded(tmp_path_factory.mktemp("m") / "m.safetensors"), device="cpu")


def rows_seen(pipeline, make):
    seen = []
    handle = pipeline.transformer.register_forward_pre_hook(
        lambda *args: seen.append(args[2]["passes"].rows_at_once), with_kwargs=True
    )
    try:
        made = make()
    finally:
        handle.remove()
    return made, set(seen)


def test_a_clip_is_denoised_in_the_batches_of_its_plan_and_stays_the_same(pipeline, monkeypatch):
    expected, rows = rows_seen(pipeline, lambda: pipeline(REQUEST))
    assert rows == {4}
    for wanted in (2, 1):
        monkeypatch.setattr(placement, "_within_host", lambda *_, wanted=wanted: {"generate": wanted})
        made, rows = rows_seen(pipeline, lambda: pipeline(REQUEST))
        assert rows == {wanted}
        torch.testing.assert_close(made.pixels, expected.pixels, rtol=0, atol=1e-3)  # other sums
        torch.testing.assert_close(made.waveform, expected.waveform, rtol=0, atol=1e-3)


def test_on_a_cpu_host_memory_decides(pipeline):
    setup, plan, about = given(pipeline, 1)
    task = placement.forecast(setup, plan, about)
    (phase,) = (one for one in task.phases if one.name == "denoise")
    alone, job = dataclasses.replace(task, phases=(phase,)), pipeline._prepare(REQUEST)
    for way in phase.ways:
        enough = phase.activations + int(way.num_bytes / 0.8) + 1
        rows = placement._within_host(alone, job, enough)
        assert rows == {"generate": way.rows_at_once}
    assert [way.rows_at_once for way in phase.ways] == [4, 2, 1]


def test_clips_made_together_count_as_rows_and_in_memory(pipeline, monkeypatch):
    requests = [dataclasses.replace(REQUEST, seed=seed) for seed in range(3)]
    _, rows = rows_seen(pipeline, lambda: pipeline.together(requests))
    assert rows == {12}
    one, three = (placement.forecast(*given(pipeline, num_clips)) for num_clips in (1, 3))
    for phase, more in zip((p for p in one.phases if p.name == "denoise"), three.phases[2:], strict=False):
        assert more.num_rows == 3 * phase.num_rows
        assert more.seconds == pytest.approx(3 * phase.seconds)  # the rates are measured here
        assert more.activations > phase.activations
    monkeypatch.setattr(placement, "available_memory", lambda: 10**6)
    with pytest.raises(ResourceError, match="fewer frames or clips at once"):
        pipeline.plan(dataclasses.replace(REQUEST, width=128, height=128), num_clips=3)


def given(pipeline, num_clips):
    job = pipeline._prepare(REQUEST, num_clips)
    return pipeline._placed.setup, job.plan, placement.given_by(job, 4)


def test_a_batch_of_clips_is_placed_as_one(released):
    one, four = (fit(released, clip(), 32 * GB, num_clips=n).device for n in (1, 4))
    seconds = [sum(p.seconds for p in plan.phases if "denoise" in p.phase.name) for plan in (one, four)]
    assert seconds[1] > 3.5 * seconds[0]
    assert {"decode picture", "decode sound"} <= {planned.phase.name for planned in four.phases}  # in turns
    assert four.phases[2].phase.num_rows == 16
