"""What passes read: prompts by time, negative texts per stream, and which passes they concern."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from soundstage.checkpoints import keymap
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import AV
from soundstage.diffusion.guidance import GuidancePlan
from soundstage.models.transformer.block import Pending
from soundstage.models.transformer.inputs import StreamInput, Text
from soundstage.models.transformer.rows import Rows
from soundstage.pipelines.conditions import VideoGrid, append_keyframe, empty_audio, empty_video, freeze
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.text_conditioning import Contexts, make_contexts

GRID = VideoGrid.of(VideoGeometry(channels=4), 49, 64, 64, 24.0)  # 2 s: 7 latent frames of 4 tokens
AUDIO = AudioGeometry(channels=1)
WORDS = 3
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # float32; the same sums in another order


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int) -> AV[Tensor]:
    return AV(noise(1, WORDS, 24, seed=seed), noise(1, WORDS, 16, seed=seed))


def contexts(*, guided: bool = True, **fields: Any) -> Contexts:
    request = GenerationRequest(prompt="base", **fields)
    prompts = [text(1), *(text(10 + i) for i, _ in enumerate(request.spans))]
    return make_contexts(request, prompts, text(2), guided=guided)


def states() -> AV:
    return AV(empty_video(GRID), empty_audio(AUDIO, 50))


def calls(given: Contexts, passes: tuple[str, ...], streams: AV | None = None, sigma: float = 0.5, **options):
    model = tiny.modules("2.3")[keymap.TRANSFORMER]
    seen: list[tuple[AV[Text], ...]] = []  # per call, what each pass reads

    def look(_: Any, args: tuple, options: dict[str, Any]) -> None:
        seen.append(tuple(branch.texts for branch in options["passes"].branches))

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    streams = states() if streams is None else streams
    noisy = streams.map(lambda state: noise(*state.latents.shape, seed=7))
    try:
        made = TransformerDenoiser(model, streams, given, GuidancePlan(), **options)(noisy, sigma, passes)
    finally:
        handle.remove()
    return made, seen


def test_weights_follow_the_tokens_time() -> None:
    schedule = contexts(prompt_at=("0-1s:x", "1-:y"), prompt_transition=0.0).schedule
    weights = schedule.weights(states().audio.positions, WORDS).weights()[0]
    early = torch.arange(50) < 25  # 25 tokens a second; token 25 lies in [0.97, 1.01)
    base, first, second = weights.split(WORDS, dim=-1)
    assert not base.any()
    assert torch.equal(first[:, 0], early.logical_or(torch.arange(50) == 25).float())
    assert torch.equal(second[:, 0], 1 - first[:, 0])


def test_both_streams_change_prompt_at_the_same_second() -> None:
    schedule = contexts(prompt_at=("1-:y",), prompt_transition=0.5).schedule
    for state in (states().video, states().audio):
        weights = schedule.weights(state.positions, WORDS).weights()[0, :, -1]
        middle = state.positions[0, 0].mean(-1)
        assert not weights[middle < 0.75].any()
        assert (weights[middle > 1.25] == 1).all()
        between = weights[(middle > 0.8) & (middle < 1.2)]
        assert ((between > 0) & (between < 1)).all()


def test_appended_tokens_read_the_prompt_of_their_own_time() -> None:
    state = append_keyframe(states().video, GRID, noise(1, 4, 1, 2, 2), frame=36)
    schedule = contexts(prompt_at=("0-1s:x",), prompt_transition=0.0).schedule
    weights = schedule.weights(state.positions, WORDS).weights()[0]
    assert (weights[-4:, 0] == 1).all(), "a picture at 1.5 s reads the base prompt"


def test_prompt_that_holds_throughout_is_that_prompt_in_every_pass_but_the_negative_ones() -> None:
    """All passes, both streams: relayed over the whole clip equals given alone."""
    names = ("cond", "uncond", "isolated")
    relayed, _ = calls(contexts(prompt_at=("0-:x",)), names)
    alone, _ = calls(Contexts(prompt=text(10), negative=text(2)), names)
    for got, expected in zip(relayed, alone, strict=True):
        torch.testing.assert_close(got.video, expected.video, **CLOSE)
        torch.testing.assert_close(got.audio, expected.audio, **CLOSE)


def test_moments_far_from_a_span_hear_nothing_of_it_directly() -> None:
    """With the prompts of one half changed, the text step of the other half's tokens stays as it was."""
    model = tiny.modules("2.3")[keymap.TRANSFORMER]
    streams = states()
    request = GenerationRequest(prompt="base", prompt_at=("0-1s:x", "1-:y"), prompt_transition=0.0)
    outcomes = []
    for seed in (21, 22):
        given = make_contexts(request, [text(1), text(20), text(seed)], None, guided=False)
        weights = given.weights(streams.map(lambda state: state.positions)).audio
        stream = StreamInput(
            latents=noise(1, 50, 16),
            timesteps=torch.full((1, 50), 0.5),
            sigma=torch.tensor([0.5]),
            positions=streams.audio.positions,
            context=given.prompt.audio,
            context_weights=weights,
        )
        conditioning = model.condition("audio", {"audio": stream}, model.prepare(audio=stream.positions))
        block = model.transformer_blocks[0]
        pending = Pending({"audio": noise(1, 50, 16)}, Rows.shared(1, 1))
        modulation = conditioning.modulation.plus(block.audio_scale_shift_table)
        block.attend_to_text(pending, block.layers("audio"), conditioning, modulation)
        outcomes.append(pending.tokens["audio"])
    first, second = outcomes
    assert torch.equal(first[:, :26], second[:, :26])
    assert not torch.isclose(first[:, 26:], second[:, 26:]).all(-1).any()


@pytest.mark.parametrize("together", [True, False])
def test_prompts_in_time_and_normalised_guidance_work_together(together: bool) -> None:
    """A span over the whole clip with a negative text equals the prompt alone with the same negative text."""
    nag = {"nag_scale": 5.0, "audio_nag_scale": 3.0}
    names = ("cond", "uncond", "isolated")
    relayed, _ = calls(contexts(prompt_at=("0-:x",), **nag), names, rows_at_once=4 if together else 1)
    request = GenerationRequest(prompt="x", **nag)
    alone, _ = calls(make_contexts(request, [text(10)], text(2), guided=True), names)
    for got, expected in zip(relayed, alone, strict=True):
        torch.testing.assert_close(got.video, expected.video, **CLOSE)
        torch.testing.assert_close(got.audio, expected.audio, **CLOSE)
    plain, _ = calls(Contexts(prompt=text(10), negative=text(2)), names)
    assert not torch.allclose(alone[0].video, plain[0].video)
    assert torch.allclose(alone[1].video, plain[1].video), "the negative prompt's own pass is left alone"


def test_each_stream_has_its_own_scale_and_can_be_off() -> None:
    given = contexts(nag_scale=5.0, audio_nag_scale=1.0, nag_tau=3.0, nag_alpha=0.5)
    assert given.negative_text.audio is None
    assert (given.negative_text.video.scale, given.negative_text.video.tau) == (5.0, 3.0)
    assert torch.equal(given.negative_text.video.context, text(2).video)
    assert contexts(nag_scale=5.0).negative_text.audio.scale == 5.0
    assert contexts().negative_text == AV()
    assert contexts(nag_scale=5.0, nag_alpha=0.0).negative_text == AV()


def test_normalised_guidance_keeps_to_the_guidance_interval_and_off_frozen_streams() -> None:
    given = contexts(nag_scale=5.0, guidance_interval=(0.2, 0.8))
    _, ((read,),) = calls(given, ("cond",), sigma=0.5)
    assert read.video.negative is not None
    assert read.audio.negative is not None
    _, ((read,),) = calls(given, ("cond",), sigma=0.9)
    assert read.video.negative is None
    assert given.steers(float(torch.tensor(0.8)))  # a bound as float32 has it
    frozen = AV(states().video, freeze(states().audio, noise(1, 50, 16)))
    _, ((read,),) = calls(given, ("cond",), streams=frozen)
    assert read.video.negative is not None
    assert read.audio.negative is None


def test_plain_prompts_are_read_as_they_are() -> None:
    _, (read,) = calls(contexts(), ("cond", "uncond"))
    assert len(read) == 2
    for texts in read:
        for one in (texts.video, texts.audio):
            assert one.weights is None
            assert one.negative is None
            assert one.context.shape[:2] == (1, WORDS)


def test_negative_prompt_without_guidance_has_no_pass() -> None:
    given = contexts(guided=False, nag_scale=5.0)
    assert given.negative is None
    assert given.negative_text.video is not None
