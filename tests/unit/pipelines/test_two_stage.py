"""Plans of two stages and long clips, run on a tiny model."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from soundstage.core.errors import Cancelled, CheckpointError
from soundstage.core.progress import Progress
from soundstage.core.types import AV
from soundstage.media.video import read_clip
from soundstage.models.transformer.patchify import patchify_audio
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.stream import ClipStream

PROMPT = "a red ball bounces on a wooden floor"
PLAIN = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
SMALL = {"num_frames": 9, "width": 64, "height": 32, "num_inference_steps": 2, **PLAIN}
LONG = {"num_frames": 44, "width": 32, "height": 16, "num_inference_steps": 1, "window": 25, **PLAIN}


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def upsampler(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.write_upsampler(tmp_path_factory.mktemp("upsampler") / "x2.safetensors"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, float, tuple[str, ...]]]:
    """Record every call of the network: the noisy streams, the level, and the passes."""
    calls: list[tuple[Any, float, tuple[str, ...]]] = []
    run = TransformerDenoiser.__call__

    def recorded(self, noisy, sigma, passes):
        calls.append((noisy, sigma, tuple(passes)))
        return run(self, noisy, sigma, passes)

    monkeypatch.setattr(TransformerDenoiser, "__call__", recorded)
    return calls


def results_of(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> list[AV[Tensor]]:
    """Run a request and return the latents of its stages."""
    kept: list[AV[Tensor]] = []
    run = pipeline._maker._runner.run

    def recorded(plan, inputs):
        made = run(plan, inputs)
        kept.extend(made)
        return made

    monkeypatch.setattr(pipeline._maker._runner, "run", recorded)
    pipeline(PROMPT, **fields)
    return kept


def test_second_stage_has_twice_the_size_and_the_clip_that_of_the_request(
    pipeline: Pipeline, upsampler: str, seen: list
) -> None:
    made = pipeline(PROMPT, upsampler=upsampler, **SMALL)
    assert made.pixels.shape == (3, 9, 32, 64)
    assert made.waveform.shape == (2, 9000)
    tokens = [noisy.video.shape[1] for noisy, _, _ in seen]
    assert sorted(set(tokens)) == [2 * 2 * 1, 2 * 4 * 2]
    assert tokens == sorted(tokens)


def test_sound_of_the_first_stage_is_given_to_the_second_bit_for_bit_and_shipped(
    pipeline: Pipeline, upsampler: str, seen: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = results_of(pipeline, monkeypatch, upsampler=upsampler, **SMALL)
    assert torch.equal(first.audio, second.audio)
    refining = [noisy.audio for noisy, _, _ in seen if noisy.video.shape[1] == 16]
    assert len(refining) > 1
    assert all(torch.equal(audio, patchify_audio(first.audio)) for audio in refining)


def test_sound_can_be_refined_too(
    pipeline: Pipeline, upsampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"upsampler": upsampler, "audio_from": "stage2", **SMALL}
    first, second = results_of(pipeline, monkeypatch, **fields)
    assert first.audio.shape == second.audio.shape
    assert not torch.equal(first.audio, second.audio)


def test_weak_refinement_stays_near_the_enlarged_clip(
    pipeline: Pipeline, upsampler: str, seen: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a level near 0 the stage starts from the upsampler's latents and hardly moves them."""
    fields = {"upsampler": upsampler, "refine_strength": 0.001, **SMALL}
    first, second = results_of(pipeline, monkeypatch, **fields)
    choice = pipeline.plan(pipeline_request(fields)).upsampler
    enlarged = pipeline._maker._runner._enlarge(first.video, choice, None)
    assert seen[-1][1] == pytest.approx(0.001)
    torch.testing.assert_close(second.video, enlarged, atol=0.02, rtol=0.02)


def pipeline_request(fields: dict[str, Any]):
    return GenerationRequest(prompt=PROMPT, **fields)


def test_upsampler_that_is_loaded_stays_loaded(pipeline: Pipeline, upsampler: str) -> None:
    first = pipeline._maker._runner._network(upsampler)
    assert pipeline._maker._runner._network(upsampler) is first


@pytest.mark.parametrize("fields", [{"upsampler": "pixels"}, {"upsampler": "bicubic", "plan": "hq"}])
def test_ways_without_training_run_and_are_noted(pipeline: Pipeline, fields: dict[str, str]) -> None:
    made = pipeline(PROMPT, **fields, **SMALL)
    assert made.pixels.isfinite().all()
    assert any("without a network trained for it" in note for note in made.notes)


def test_fractions_are_possible(pipeline: Pipeline, tmp_path: Path) -> None:
    options = {"rational_resampler": True, "spatial_scale": 1.5}
    path = tiny.write_upsampler(tmp_path / "x1.5.safetensors", **options)
    made = pipeline(PROMPT, upsampler=str(path), **{**SMALL, "width": 96, "height": 48})
    assert made.pixels.shape == (3, 9, 48, 96)


def test_two_stages_without_an_upsampler_are_refused_before_anything_runs(pipeline: Pipeline) -> None:
    events: list[Progress] = []
    with pytest.raises(CheckpointError, match="no upsampler was trained"):
        pipeline(PROMPT, plan="two_stage", on_progress=events.append, **SMALL)
    assert events == []


def test_progress_tells_of_both_stages(pipeline: Pipeline, upsampler: str) -> None:
    events: list[Progress] = []
    pipeline(PROMPT, upsampler=upsampler, on_progress=events.append, **SMALL)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["encode_prompt", "denoise", "upsample", "refine", "decode_video", "decode_audio"]


def test_cadence_saves_passes_of_the_network(pipeline: Pipeline, seen: list) -> None:
    fields = {**SMALL, "num_inference_steps": 4, "guidance_scale": 3.0, "guidance_every": 2}
    pipeline(PROMPT, **fields, modality_scale=1.0, audio_modality_scale=1.0)
    assert [len(passes) for _, _, passes in seen] == [2, 1, 2, 1]
    pipeline(PROMPT, **fields, modality_every=4)
    assert [len(passes) for _, _, passes in seen[4:]] == [3, 1, 2, 1]


def test_long_clip_begins_as_the_short_one_and_has_exactly_its_length(pipeline: Pipeline) -> None:
    made = pipeline(PROMPT, seed=3, **LONG)
    assert made.pixels.shape == (3, 44, 16, 32)
    assert made.waveform.shape == (2, 44_000)
    whole = pipeline(PROMPT, seed=3, **{**LONG, "num_frames": 25})
    unblended = 8 + 17 // 4
    assert torch.equal(made.pixels[:, :unblended], whole.pixels[:, :unblended])
    assert torch.equal(made.waveform[:, :12_000], whole.waveform[:, :12_000])
    assert "generated in 4 windows of 25 frames that share 17" in made.notes[0]


def test_windows_are_given_the_end_of_the_one_before(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = results_of(pipeline, monkeypatch, **LONG)
    for before, after in itertools.pairwise(kept):
        assert torch.equal(after.video[:, :, 1:3], before.video[:, :, 2:4])
        shift = round(8 / 24 * 25)
        count = before.audio.shape[2] - shift - 1
        assert torch.equal(after.audio[:, :, 1 : 1 + count], before.audio[:, :, 1 + shift :])


def test_long_clips_can_have_two_stages_and_drift_control(pipeline: Pipeline, upsampler: str) -> None:
    fields = {**LONG, "width": 64, "height": 32, "upsampler": upsampler, "drift_control": 0.3}
    made = pipeline(PROMPT, **{**fields, "num_frames": 30})
    assert made.pixels.shape == (3, 30, 32, 64)
    assert made.pixels.isfinite().all()


def test_long_clip_is_written_as_it_is_made(pipeline: Pipeline, tmp_path: Path) -> None:
    stream = pipeline.stream(PROMPT, **LONG)
    assert isinstance(stream, ClipStream)
    assert (stream.num_frames, stream.height, stream.width, stream.num_parts) == (44, 16, 32, 4)
    clip = read_clip(stream.save(tmp_path / "long.mp4"))
    assert clip.frames.shape == (44, 16, 32, 3)
    assert clip.waveform.shape[1] == 44_000


def test_long_sound_can_be_written_alone(pipeline: Pipeline, tmp_path: Path) -> None:
    path = pipeline.stream(PROMPT, **LONG).save(tmp_path / "long.wav")
    assert path.stat().st_size > 44_000 * 4


def test_parts_come_one_at_a_time(pipeline: Pipeline) -> None:
    """Nothing of a later window is computed before the earlier part is taken."""
    events: list[Progress] = []
    stream = pipeline.stream(PROMPT, on_progress=events.append, **LONG)
    assert events == []
    next(iter(stream))
    windows = [event for event in events if event.stage == "windows"]
    assert (windows[0].step, windows[-1].step, windows[-1].num_steps) == (0, 1, 4)


def test_long_clip_can_be_cancelled_within_a_window_and_leaves_nothing(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    steps: list[int] = []

    def stop(event: Progress) -> None:
        if event.stage == "windows":
            steps.append(event.step)
            if len(steps) == 3:
                raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        pipeline.stream(PROMPT, on_progress=stop, **LONG).save(tmp_path / "long.mp4")
    assert list(tmp_path.iterdir()) == []
