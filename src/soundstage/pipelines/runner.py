"""Run the stages of a plan: each starts from the latents of the one before, enlarged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from soundstage.core.progress import OnProgress, Progress
from soundstage.core.types import AV
from soundstage.diffusion.denoise import Denoiser, denoise, start
from soundstage.models.transformer.patchify import patchify_audio, unpatchify_audio, unpatchify_video
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.pipelines.conditions import StreamState, freeze, refine_from
from soundstage.pipelines.decode import StageProgress
from soundstage.pipelines.loading import Components, load_upsampler
from soundstage.pipelines.noise import NoiseSource
from soundstage.pipelines.plan import Plan, Stage
from soundstage.pipelines.upsampling import TRAIN_FREE, TRAIN_FREE_SCALE, UpsamplerChoice, upsample
from soundstage.pipelines.windows import Handover, take_over

MakeStates = Callable[[int], AV[StreamState]]  # from the stage's index: what a mode gives at its size
MakeDenoiser = Callable[[Stage, AV[StreamState]], Denoiser]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run needs beside its plan."""

    states: MakeStates
    denoiser: MakeDenoiser
    noise: NoiseSource
    on_progress: OnProgress | None = None
    before: Callable[[int], None] = lambda _: None  # a stage, counted from 1, is sampled
    given: Sequence[Handover] = field(default_factory=tuple)  # per stage, in later windows of a long clip


class StageRunner:
    """Runs plans with the networks of one model; an upsampler is loaded when first needed, and then kept."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self._upsamplers: dict[str, LatentUpsampler] = {}

    def run(self, plan: Plan, inputs: Inputs) -> list[AV[Tensor]]:
        """Run all stages and return the normalised latents of each."""
        results: list[AV[Tensor]] = []
        for index, stage in enumerate(plan.stages):
            streams = inputs.states(index)
            if inputs.given:
                streams = take_over(streams, stage, inputs.given[index])
            if stage.refines:
                assert plan.upsampler is not None
                streams = self._refining(streams, stage, results[-1], plan.upsampler, inputs.on_progress)
            inputs.before(index + 1)
            results.append(self._denoise(stage, streams.map(self._to_device), inputs))
        return results

    def _refining(
        self,
        streams: AV[StreamState],
        stage: Stage,
        before: AV[Tensor],
        upsampler: UpsamplerChoice,
        on_progress: OnProgress | None,
    ) -> AV[StreamState]:
        """Start a stage from the latents of the one before; what the mode gives stays given."""
        video, audio = streams.video, streams.audio
        if video is not None and not video.frozen and before.video is not None:
            enlarged = self._enlarge(before.video, upsampler, on_progress)
            assert tuple(enlarged.shape[2:]) == stage.grid.latent_shape
            video = refine_from(video, stage.grid.tokens(enlarged).to(video.latents))
        if audio is not None and not audio.frozen and before.audio is not None:
            tokens = patchify_audio(before.audio).to(audio.latents)
            audio = freeze(audio, tokens) if stage.keeps_sound else refine_from(audio, tokens)
        return AV(video, audio)

    def _enlarge(self, latents: Tensor, choice: UpsamplerChoice, on_progress: OnProgress | None) -> Tensor:
        vae, progress = self.components.video_vae, StageProgress(on_progress)
        assert vae is not None
        progress("upsample", 0, 1)
        if choice.is_trained:
            enlarged: Tensor = upsample(self._network(choice.name), vae, latents)
        else:
            budget = self.components.decode_budget
            enlarged = TRAIN_FREE[choice.name](vae, latents, TRAIN_FREE_SCALE, budget)
        progress("upsample", 1, 1)
        return enlarged

    def _network(self, name: str) -> LatentUpsampler:
        if name not in self._upsamplers:
            residency, device = self.components.residency, self.components.device
            place = device if residency is None else torch.device("cpu")
            network = load_upsampler(name, device=place, dtype=self.components.dtype)
            if residency is not None:
                residency.manage("upsampler", network)
            self._upsamplers = {name: network}
        return self._upsamplers[name]

    def _denoise(self, stage: Stage, streams: AV[StreamState], inputs: Inputs) -> AV[Tensor]:
        """Run the sampler of one stage."""
        noisy = start(streams, inputs.noise.initial(streams), scale=stage.noise_scale)
        tokens = denoise(
            inputs.denoiser(stage, streams),
            streams,
            noisy,
            stage.recipe,
            draw=inputs.noise.draw,
            on_progress=_named(inputs.on_progress, "refine") if stage.refines else inputs.on_progress,
        )
        video, audio = tokens.video, tokens.audio
        if video is not None and streams.video is not None:
            patch_size = stage.grid.geometry.patch_size
            video = unpatchify_video(streams.video.result(video), stage.grid.latent_shape, patch_size)
        if audio is not None and streams.audio is not None:
            channels = self.components.audio_geometry.channels
            audio = unpatchify_audio(streams.audio.result(audio), channels)
        return AV(video, audio)

    def _to_device(self, state: StreamState) -> StreamState:
        return state.to(self.components.device)


def _named(on_progress: OnProgress | None, stage: str) -> OnProgress | None:
    """Tell of the sampler's steps under another name."""
    if on_progress is None:
        return None
    listener = on_progress

    def tell(event: Progress) -> None:
        listener(replace(event, stage=stage))

    return tell
