"""What each guidance pass changes about the call of the transformer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from soundstage.checkpoints import keymap
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import AV
from soundstage.diffusion.denoise import Recipe, denoise
from soundstage.diffusion.guidance import GuidancePlan, Pass, SpatioTemporalGuidance, StreamGuidance
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.models.transformer.attention_weights import FactoredAttentionWeights
from soundstage.models.transformer.inputs import Passes, Perturbation, StreamInput
from soundstage.models.transformer.model import AVTransformer
from soundstage.pipelines import batching
from soundstage.pipelines.conditions import (
    VideoGrid,
    append_reference,
    empty_audio,
    empty_video,
    freeze,
    replace_frames,
)
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.noise import StreamNoise
from soundstage.pipelines.prompt_spans import PromptSpan
from soundstage.pipelines.text_conditioning import Contexts, PromptSchedule
from synchronisations import Synchronisations

GRID = VideoGrid.of(VideoGeometry(channels=4), 17, 64, 64, 24.0)
AUDIO = AudioGeometry(channels=1)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # float32; the same sums in another order
PASSES = ("cond", "uncond", "perturbed", "isolated")
PLAN = GuidancePlan(
    streams=AV(
        StreamGuidance(terms=(SpatioTemporalGuidance(scale=1.0, blocks=(0,)),)),
        StreamGuidance(terms=(SpatioTemporalGuidance(scale=1.0, blocks=(1,)),)),
    )
)


def transformer(generation: str = "2.3") -> AVTransformer:
    return tiny.modules(generation)[keymap.TRANSFORMER]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states() -> AV:
    return AV(empty_video(GRID), empty_audio(AUDIO, 7))


def noisy(batch: int = 1) -> AV[Tensor]:
    return AV(noise(batch, 12, 4), noise(batch, 7, 16))


def contexts(negative: bool = True) -> Contexts:
    def pair(seed: int) -> AV[Tensor]:
        return AV(noise(1, 3, 24, seed=seed), noise(1, 3, 16, seed=seed))

    return Contexts(prompt=pair(1), negative=pair(2) if negative else None)


def captions() -> Contexts:
    """Make text as wide as 2.0 wants it, which projects it itself."""
    prompt, negative = noise(1, 3, 12, seed=1), noise(1, 3, 12, seed=2)
    return Contexts(prompt=AV(prompt, prompt), negative=AV(negative, negative))


@contextmanager
def recorded(model: AVTransformer) -> Iterator[list[tuple[StreamInput, StreamInput, Passes]]]:
    calls: list[tuple[StreamInput, StreamInput, Passes]] = []

    def look(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append((*args[:2], options["passes"]))

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def run(streams: AV, passes: tuple[str, ...] = PASSES, **options: Any) -> tuple[list[AV], list[tuple]]:
    model = transformer(options.pop("generation", "2.3"))
    given = options.pop("contexts", contexts())
    latents = options.pop("latents", noisy())
    with recorded(model) as calls:
        denoiser = TransformerDenoiser(model, streams, given, PLAN, **options)
        return denoiser(latents, 0.5, passes), calls


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("at_once", [8, 2, 1])
@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
def test_passes_run_together_give_what_each_gives_alone(generation: str, at_once: int, batch: int) -> None:
    options = {"generation": generation, "latents": noisy(batch), "rows_at_once": at_once}
    if generation == "2.0":
        options["contexts"] = captions()
    got, calls = run(states(), **options)
    assert len(calls) == 1, "every block's weights are asked for once"
    for name, ours in zip(PASSES, got, strict=True):
        ((alone,), _) = run(states(), (name,), **options)
        torch.testing.assert_close(ours.video, alone.video, **CLOSE)
        torch.testing.assert_close(ours.audio, alone.audio, **CLOSE)


@pytest.mark.parametrize("at_once", [4, 2, 1])
@pytest.mark.parametrize("generation", ["2.3", "2.5"])
def test_steps_never_wait_for_the_device(generation: str, at_once: int) -> None:
    """Neither with one noise level nor with a given first frame."""
    given = replace_frames(empty_video(GRID), GRID, noise(1, 4, 1, 2, 2))
    for streams in (states(), AV(given, states().audio)):
        denoiser = TransformerDenoiser(
            transformer(generation), streams, contexts(), PLAN, rows_at_once=at_once
        )
        with Synchronisations() as waits:
            denoiser(noisy(), 0.5, PASSES)
        assert waits.found == []


def limited(generation: str = "2.3", *, count: int = 1) -> tuple[TransformerDenoiser, AV]:
    """A clip that hears a reference half as strongly, and a prompt that holds for a part of it."""
    video = append_reference(empty_video(GRID), GRID, noise(1, 4, 3, 2, 2, seed=3), attention_strength=0.5)
    spans = (PromptSpan.of("0-0.3:x"),)
    words = AV(noise(1, 6, 24, seed=1), noise(1, 6, 16, seed=1))  # of two prompts
    texts = replace(contexts(), prompt=words, schedule=PromptSchedule(spans=spans, transition=0.2))
    denoiser = TransformerDenoiser(transformer(generation), AV(video, states().audio), texts, PLAN)
    return denoiser, AV(noise(count, 24, 4), noise(count, 7, 16))


@pytest.mark.parametrize("count", [1, 2])
def test_who_attends_to_whom_is_found_once_and_not_in_the_steps(count: int, monkeypatch) -> None:
    denoiser, given = limited(count=count)
    with monkeypatch.context() as looking:
        for name in ("parts", "weights"):
            looking.setattr(
                FactoredAttentionWeights, name, lambda *_: pytest.fail("multiplied out in a step")
            )
        with Synchronisations() as waits:
            got = denoiser(given, 0.5, PASSES)
    assert waits.found == []
    state = denoiser.streams.video
    denoiser._fixed.video.attention_weights = state.attention_weights.weights()  # the plain way: all pairs
    for ours, plain in zip(got, denoiser(given, 0.5, PASSES), strict=True):
        torch.testing.assert_close(ours.video, plain.video, **CLOSE)
        torch.testing.assert_close(ours.audio, plain.audio, **CLOSE)
    denoiser._fixed.video.attention_weights = None
    assert not torch.allclose(denoiser(given, 0.5, PASSES)[1].video, got[1].video, **CLOSE)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_waits_for_nothing_but_its_schedule(name: str) -> None:
    """That one is on the host: each evaluation asks which step it belongs to."""
    streams, source = states(), StreamNoise(0)
    denoiser = TransformerDenoiser(transformer(), streams, contexts(), PLAN, rows_at_once=1)
    recipe = Recipe(sigmas=torch.tensor([1.0, 0.6, 0.0]), sampler=SAMPLERS[name], guidance=PLAN)
    start, evaluations = source.initial(streams), list[float]()

    def counted(noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        evaluations.append(sigma)
        return denoiser(noisy, sigma, passes)

    with Synchronisations() as waits:
        denoise(counted, streams, start, recipe, draw=source.draw)
    assert len(evaluations) >= 2
    assert waits.found == ["aten._local_scalar_dense.default"] * len(evaluations)


@pytest.mark.parametrize("num_texts", [1, 2])
def test_answers_come_in_the_order_of_the_question(num_texts: int) -> None:
    given = contexts(negative=num_texts == 2)
    forwards, _ = run(states(), PASSES, contexts=given)
    backwards, _ = run(states(), PASSES[::-1], contexts=given)
    for ours, theirs in zip(forwards, backwards[::-1], strict=True):
        assert torch.equal(ours.video, theirs.video)


def test_every_pass_differs_from_the_others() -> None:
    predictions, _ = run(states())
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(predictions[i].video, predictions[j].video)
            assert not torch.allclose(predictions[i].audio, predictions[j].audio)


def test_each_pass_changes_what_it_is_named_for() -> None:
    _, ((_, _, passes),) = run(states())
    uncond, *others = passes.branches
    assert [branch.perturbation for branch in (uncond, *others)] == [
        Perturbation(),
        Perturbation(),
        Perturbation(skip_video_self_attention=frozenset({0}), skip_audio_self_attention=frozenset({1})),
        Perturbation(skip_a2v="all", skip_v2a="all"),
    ]
    given = contexts()
    for name in ("video", "audio"):
        assert torch.equal(getattr(uncond.texts, name).context, getattr(given.negative, name))
        texts = {getattr(branch.texts, name) for branch in others}
        assert torch.equal(texts.pop().context, getattr(given.prompt, name))
        assert not texts, "the same text, so that what is kept of it serves all three"


def test_without_a_negative_prompt_the_prompt_stands_in() -> None:
    (cond, uncond), _ = run(states(), ("cond", "uncond"), contexts=contexts(negative=False))
    assert torch.equal(cond.video, uncond.video)
    assert torch.equal(cond.audio, uncond.audio)


def test_a_stream_without_a_negative_prompt_keeps_its_prompt() -> None:
    whole = contexts()
    given = Contexts(prompt=whole.prompt, negative=AV(video=whole.negative.video))
    assert given.of("uncond") == AV(whole.negative.video, whole.prompt.audio)


def test_timesteps_are_the_mask_times_sigma() -> None:
    state = replace_frames(empty_video(GRID), GRID, noise(1, 4, 1, 2, 2), strength=0.75)
    _, ((video, audio, _),) = run(AV(state, states().audio), ("cond",))
    assert video.timesteps[0].tolist() == [0.125] * 4 + [0.5] * 8
    assert video.sigma.tolist() == audio.sigma.tolist() == [0.5]


def test_frozen_stream_has_level_zero_and_no_perturbation_of_its_own() -> None:
    given = AV(states().video, freeze(states().audio, noise(1, 7, 16)))
    _, ((_, audio, passes),) = run(given, ("cond", "perturbed"))
    assert audio.sigma.tolist() == [0.0]
    assert not audio.timesteps.any()
    perturbed = passes.branches[1].perturbation
    assert perturbed.skip_audio_self_attention == frozenset()
    assert perturbed.skip_video_self_attention == {0}


def test_kept_token_is_predicted_as_it_is() -> None:
    state = replace_frames(empty_video(GRID), GRID, noise(1, 4, 1, 2, 2))
    latents = noisy()
    predictions, _ = run(AV(state, states().audio), latents=latents)
    for prediction in predictions:
        assert torch.equal(prediction.video[:, :4], latents.video[:, :4])


@pytest.mark.parametrize("streams", [AV(video=states().video), AV(audio=states().audio)])
def test_one_stream_runs_alone(streams: AV) -> None:
    latents = AV(noisy().video if streams.video else None, noisy().audio if streams.audio else None)
    (prediction,), _ = run(streams, ("cond",), latents=latents)
    assert (prediction.video is None) == (streams.video is None)
    assert (prediction.audio is None) == (streams.audio is None)


def test_batch_of_clips_keeps_items_and_passes_apart() -> None:
    latents = noisy(batch=2)
    together, _ = run(states(), latents=latents, rows_at_once=8)
    second, _ = run(states(), latents=latents.map(lambda x: x[1:]), rows_at_once=8)
    for got, expected in zip(together, second, strict=True):
        torch.testing.assert_close(got.video[1:], expected.video)


def test_keyframe_marks_reach_a_checkpoint_that_asks_for_them() -> None:
    _, ((video, _, _),) = run(states(), ("cond",), generation="2.5")
    assert video.keyframe_mask[0, :, 0].tolist() == [1.0] * 4 + [0.0] * 8


@pytest.mark.parametrize(("numbers", "expected"), [(400 * 4, 4), (400 * 4 - 1, 2), (400 * 2 - 1, 1)])
def test_without_a_plan_as_many_rows_go_together_as_gain_by_it(
    numbers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "CPU_NUMBERS", numbers)
    _, ((_, _, passes),) = run(states())  # 12 video tokens of width 24, 7 audio tokens of width 16
    assert passes.rows_at_once == expected
    _, ((_, _, passes),) = run(states(), rows_at_once=3)
    assert passes.rows_at_once == 3


def test_without_room_for_texts_nothing_of_them_is_kept_and_nothing_changes() -> None:
    """Not even until the end of a step, where the keys and values of all blocks would be there at once."""
    predictions = []
    for keep in (True, False):
        model = transformer("2.0")
        with recorded(model) as calls:
            denoiser = TransformerDenoiser(model, states(), captions(), PLAN, keep_texts=keep)
            predictions.append(denoiser(noisy(), 0.5, PASSES))
        kept = calls[0][2].kept
        assert (kept is not None and kept.num_bytes > 0) == keep
    for a, b in zip(*predictions, strict=True):
        assert torch.equal(a.video, b.video)
        assert torch.equal(a.audio, b.audio)
