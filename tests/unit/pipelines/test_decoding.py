"""Picture and sound are decoded side by side, on a device that is shared, in memory that does not grow."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from live_bytes import LiveBytes
from soundstage.core.progress import Progress
from soundstage.models.video_vae.decode_plan import DecodePlan, decoding_bytes
from soundstage.pipelines import decode
from soundstage.pipelines.decode import decode_budget, plan_video
from soundstage.pipelines.pipeline import Pipeline
from soundstage.runtime.residency import MARK, Residency, bring

SMALL = {"num_frames": 9, "width": 32, "height": 16, "num_inference_steps": 1}


@pytest.fixture
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline.load(tiny_model, device="cpu")


def size(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())


@pytest.mark.parametrize("missing", [0, 1])
def test_the_video_decoder_stays_while_the_picture_is_decoded(pipeline: Pipeline, missing: int) -> None:
    """What the sound needs comes beside it, or where one byte is missing, before it."""
    (wanted,) = pipeline.stream("a ball", **SMALL)
    components, order = pipeline.components, list[str]()
    video, sound = components.video_vae, (components.audio_vae, components.vocoder)
    residency = Residency(torch.device("cpu"), sum(size(net) for net in (video, *sound)) - missing)
    for network in (video, *sound):
        residency.manage("network", network)
    components.vocoder.register_forward_pre_hook(lambda *_: order.append("sound"))

    def listen(event: Progress) -> None:
        if event.stage == "decode_video":
            order.append("picture")
            assert video.__dict__[MARK][1] in residency._present

    (part,) = pipeline.stream("a ball", on_progress=listen, **SMALL)
    assert torch.equal(part.pixels, wanted.pixels)
    assert torch.equal(part.waveform, wanted.waveform)
    assert residency._pinned == []
    if missing:
        assert order[0] == "sound"


def test_a_clip_that_waits_to_be_read_on_holds_nothing_on_the_device(pipeline: Pipeline) -> None:
    video = pipeline.components.video_vae
    budget = decoding_bytes(video.config, (100, 2, 4), DecodePlan(chunk=1, rows=2, columns=4), 4)
    placed = Pipeline(replace(pipeline.components, decode_budget=budget), prompts=pipeline.prompts)
    wanted = [part.pixels for part in placed.stream("a ball", **{**SMALL, "num_frames": 25})]
    residency = Residency(torch.device("cpu"), size(video))
    residency.manage("video VAE", video)
    other = nn.Linear(4, 4).requires_grad_(False)
    residency.manage("other", other)
    parts = []
    for part in placed.stream("a ball", **{**SMALL, "num_frames": 25}):
        parts.append(part.pixels)
        assert residency._pinned == []
        bring(other)
        assert video.__dict__[MARK][1] not in residency._present
    assert len(parts) > 1
    assert all(torch.equal(*pair) for pair in zip(parts, wanted, strict=True))


# How much is decoded at once


def test_neither_chunks_nor_memory_grow_with_the_clip(pipeline: Pipeline) -> None:
    """What the plan leaves for decoding reaches the decoder, from placing to the last frame."""
    config = pipeline.components.video_vae.config
    budget = decoding_bytes(config, (100, 2, 4), DecodePlan(chunk=2, rows=2, columns=4), 4)
    placed = Pipeline(replace(pipeline.components, decode_budget=budget), prompts=pipeline.prompts)
    longest, peaks = {}, {}
    for num_frames in (97, 193):
        measured, before, lengths = LiveBytes(), list[int](), list[int]()

        def begin(event: Progress, measured: LiveBytes = measured, before: list[int] = before) -> None:
            if event.stage == "decode_video" and event.step == 0:
                measured.peak = measured.now
                before.append(measured.now)

        fields = {**SMALL, "num_frames": num_frames, "window": 193}
        with measured.ignore(placed.components.video_vae):
            for part in placed.stream("a ball", on_progress=begin, **fields):
                lengths.append(part.pixels.shape[1])
                sound = part.waveform.untyped_storage().nbytes()  # all of it is there from the first part on
                del part
        longest[num_frames], peaks[num_frames] = max(lengths), measured.peak - before[0] - sound
        assert sum(lengths) == num_frames
    assert longest[193] == longest[97] <= 16
    assert peaks[193] == pytest.approx(peaks[97], rel=0.05)


def test_every_decode_of_a_pipeline_keeps_to_the_budget(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def plan(vae, latents, budget=None):
        seen.append(budget)
        return plan_video(vae, latents, budget)

    monkeypatch.setattr(decode, "plan_video", plan)
    placed = Pipeline(replace(pipeline.components, decode_budget=10**7), prompts=pipeline.prompts)
    placed("a ball", **SMALL)
    list(placed.each(["a ball"], num_videos=2, **SMALL))
    list(placed.stream("a ball", **SMALL))
    list(placed.stream("a ball", **{**SMALL, "num_frames": 44, "window": 25}))
    placed("a ball", plan="two_stage", upsampler="pixels", **{**SMALL, "width": 64, "height": 32})
    assert len(seen) == 1 + 2 + 1 + 4 + 2
    assert set(seen) == {10**7}


def test_without_a_plan_a_gpu_is_asked_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50 * 10**9, 140 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 8 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 3 * 10**9)
    assert decode_budget(torch.device("cuda", 0)) == 44 * 10**9
