"""Sampler, guidance and keep masks over both streams."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from soundstage.core.errors import Cancelled
from soundstage.core.progress import Progress
from soundstage.core.types import AV
from soundstage.diffusion.denoise import Recipe, denoise, start
from soundstage.diffusion.guidance import (
    ClassifierFreeGuidance,
    CrossModalGuidance,
    GuidancePlan,
    StreamGuidance,
)
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.diffusion.schedules import make_sigmas

TEXT = StreamGuidance(terms=(ClassifierFreeGuidance(scale=3.0), CrossModalGuidance(scale=1.0)))


@dataclass(frozen=True, kw_only=True)
class FakeStream:
    latents: Tensor
    clean: Tensor
    denoise_mask: Tensor
    frozen: bool = False

    @property
    def generated(self) -> Tensor:
        return self.denoise_mask > 0


def make_stream(seed: int, num_tokens: int, keep: int = 0, frozen: bool = False) -> FakeStream:
    clean = torch.randn(1, num_tokens, 4, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, num_tokens, 1) if frozen else torch.ones(1, num_tokens, 1)
    mask[:, :keep] = 0
    return FakeStream(latents=torch.zeros_like(clean), clean=clean, denoise_mask=mask, frozen=frozen)


@dataclass
class RecordingDenoiser:
    """Predicts a shrunken input, a little different in each pass, and records what it was given."""

    calls: list[tuple[AV[Tensor], float, tuple[str, ...]]] = field(default_factory=list)

    def __call__(self, noisy: AV[Tensor], sigma: float, passes: Sequence[str]) -> list[AV[Tensor]]:
        self.calls.append((noisy, sigma, tuple(passes)))
        return [noisy.map(lambda x, k=k: (0.5 - 0.1 * k) * x) for k in range(len(passes))]


def draw(like: AV[Tensor], purpose: str) -> AV[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return like.map(lambda x: torch.randn(x.shape, generator=generator))


def run(
    streams: AV, sampler: str = "euler", plan: GuidancePlan | None = None, on_progress=None, steps: int = 4
):
    denoiser = RecordingDenoiser()
    recipe = Recipe(
        sigmas=make_sigmas("shifted", steps), sampler=SAMPLERS[sampler], guidance=plan or GuidancePlan()
    )
    noise = streams.map(lambda stream: torch.ones_like(stream.clean))
    result = denoise(denoiser, streams, start(streams, noise), recipe, draw=draw, on_progress=on_progress)
    return result, denoiser


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_frozen_stream_enters_the_network_bit_equal_at_every_step_and_comes_back(sampler: str) -> None:
    streams = AV(make_stream(0, 6), make_stream(1, 3, frozen=True))
    result, denoiser = run(streams, sampler)
    assert all(torch.equal(noisy.audio, streams.audio.clean) for noisy, _, _ in denoiser.calls)
    assert torch.equal(result.audio, streams.audio.clean)
    assert not torch.equal(result.video, streams.video.clean)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_kept_tokens_stay_bit_equal_at_every_step(sampler: str) -> None:
    streams = AV(make_stream(0, 6, keep=2), make_stream(1, 3))
    result, denoiser = run(streams, sampler, GuidancePlan(streams=AV(TEXT, TEXT)))
    for noisy, _, _ in denoiser.calls:
        assert torch.equal(noisy.video[:, :2], streams.video.clean[:, :2])
    assert torch.equal(result.video[:, :2], streams.video.clean[:, :2])


def test_start_draws_nothing_into_frozen_and_kept_tokens() -> None:
    streams = AV(make_stream(0, 6, keep=2), make_stream(1, 3, frozen=True))
    noise = AV(torch.full((1, 6, 4), 9.0))
    begun = start(streams, noise, scale=0.5)
    assert begun.audio is None
    assert torch.equal(begun.video[:, :2], streams.video.clean[:, :2])
    assert torch.equal(begun.video[:, 2:], torch.full((1, 4, 4), 4.5))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_network_sees_float32(sampler: str) -> None:
    _, denoiser = run(AV(make_stream(0, 6), make_stream(1, 3)), sampler)
    assert {noisy.video.dtype for noisy, _, _ in denoiser.calls} == {torch.float32}


def test_only_needed_passes_are_run() -> None:
    streams = AV(make_stream(0, 6), make_stream(1, 3))
    _, unguided = run(streams)
    _, guided = run(streams, plan=GuidancePlan(streams=AV(TEXT, StreamGuidance())))
    assert {passes for _, _, passes in unguided.calls} == {("cond",)}
    assert {passes for _, _, passes in guided.calls} == {("cond", "uncond")}


def test_each_stream_is_guided_by_its_own_scales() -> None:
    streams = AV(make_stream(0, 6), make_stream(1, 3))
    plain, _ = run(streams)
    guided, _ = run(streams, plan=GuidancePlan(streams=AV(TEXT, StreamGuidance())))
    assert torch.equal(guided.audio, plain.audio)
    assert not torch.equal(guided.video, plain.video)


def test_lone_stream_is_denoised_without_the_other() -> None:
    synchrony = StreamGuidance(terms=(CrossModalGuidance(scale=3.0),))
    result, denoiser = run(AV(None, make_stream(1, 3)), plan=GuidancePlan(streams=AV(synchrony, synchrony)))
    assert result.video is None
    assert {passes for _, _, passes in denoiser.calls} == {("cond",)}
    assert denoiser.calls[0][0].video is None


def test_skipped_steps_reuse_the_last_result_and_do_not_run_the_network() -> None:
    streams = AV(make_stream(0, 6), make_stream(1, 3))
    every_second = StreamGuidance(skip_step=1)
    _, both = run(streams, plan=GuidancePlan(streams=AV(every_second, every_second)), steps=5)
    _, one = run(streams, plan=GuidancePlan(streams=AV(every_second, StreamGuidance())), steps=5)
    assert len(both.calls) == 3
    assert len(one.calls) == 5


def test_skip_counts_steps_also_when_a_sampler_evaluates_between_levels() -> None:
    streams = AV(make_stream(0, 6), None)
    _, denoiser = run(streams, "res_2s", GuidancePlan(streams=AV(StreamGuidance(skip_step=1))), steps=4)
    levels = make_sigmas("shifted", 4).tolist()
    evaluated = [next(i for i in range(4) if levels[i + 1] < sigma) for _, sigma, _ in denoiser.calls]
    assert evaluated == [0, 0, 2, 2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_counts_from_zero_to_the_number_of_steps(sampler: str) -> None:
    events: list[Progress] = []
    run(AV(make_stream(0, 6)), sampler, on_progress=events.append)
    steps = [event.step for event in events]
    assert steps[0] == 0
    assert steps[-1] == 4
    assert steps == sorted(steps)
    assert steps.count(4) == 1  # whoever adds up finished stages counts this one once
    assert {(event.stage, event.num_steps) for event in events} == {("denoise", 4)}


def test_cancelled_stops_the_run() -> None:
    def stop(event: Progress) -> None:
        if event.step == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        run(AV(make_stream(0, 6)), on_progress=stop)
