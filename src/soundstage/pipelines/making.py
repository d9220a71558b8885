"""From a prepared request to a clip: at once, or window by window."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial

import torch
from torch import Tensor

from soundstage.checkpoints import keymap
from soundstage.checkpoints.fingerprint import fingerprint
from soundstage.core.progress import OnProgress
from soundstage.core.types import AV
from soundstage.diffusion.denoise import Denoiser
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.transformer.config import Stream
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.vocoder.model import Vocoder
from soundstage.pipelines.attention_recorder import AttentionRecorder
from soundstage.pipelines.beside import Beside, Pending
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.decode import decode_audio, decode_video, stream_video
from soundstage.pipelines.denoiser import Forward, TransformerDenoiser
from soundstage.pipelines.encode import Encoders
from soundstage.pipelines.generation import Generation, fit_sound
from soundstage.pipelines.loading import Components
from soundstage.pipelines.loras import LoraSwitch, lora_notes
from soundstage.pipelines.modes.mode import Setting
from soundstage.pipelines.noise import NOISE_ORDERS, NoiseSource, SeveralNoises
from soundstage.pipelines.plan import Stage
from soundstage.pipelines.preparation import Prepared
from soundstage.pipelines.runner import Inputs, StageRunner
from soundstage.pipelines.step_caching import step_cache
from soundstage.pipelines.stream import WindowProgress
from soundstage.pipelines.teamwork import TeamDenoiser
from soundstage.pipelines.text_conditioning import Contexts
from soundstage.pipelines.windows import Handover, Joiner, Made, Part, drift_controls, hand_over, window_seed
from soundstage.runtime.distributed import Team
from soundstage.runtime.residency import fit_together, in_use

# The parts that a clip depends on, beside its text.
MAKERS = (keymap.TRANSFORMER, keymap.CONNECTORS, keymap.VIDEO_VAE, keymap.AUDIO_VAE, keymap.VOCODER)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One pass through the stages of a plan: the whole clip, or a window of it."""

    job: Prepared
    contexts: Contexts
    noise: NoiseSource
    on_progress: OnProgress | None = None
    attention: AttentionRecorder | None = None
    given: Sequence[Handover] = field(default_factory=tuple)  # what a window takes over, per stage
    start: Fraction = Fraction(0)  # seconds from the beginning of a long clip to this window
    num_clips: int = 1  # made together, with the same conditions


def _run_of(
    job: Prepared,
    contexts: Contexts,
    dtype: torch.dtype,
    on_progress: OnProgress | None,
    attention: AttentionRecorder | None = None,
) -> Run:
    """Set up the one run of a clip that is generated at once, by a network of a type."""
    return Run(
        job=job,
        contexts=contexts.starting_at(float(job.start)),
        noise=NOISE_ORDERS[job.request.noise_order](job.request.seed, dtype),
        on_progress=on_progress,
        attention=attention,
    )


class ClipMaker:
    """Makes clips with the networks of one model."""

    def __init__(self, components: Components, model: str, forward: Forward | None = None) -> None:
        self.components = components
        self.forward = forward
        self.model = model
        self.team = Team()
        self._runner = StageRunner(components)
        self._loras = LoraSwitch(self._transformer)

    @cached_property
    def weights(self) -> str:
        """What tells the model's weights from others of the same name, for the clip's record."""
        parts = self.components.checkpoint.parts
        made_of = {f"{part}/{name}": t for part in MAKERS if part in parts for name, t in parts[part].items()}
        return fingerprint(made_of)

    @torch.no_grad()
    def whole(
        self,
        job: Prepared,
        contexts: Contexts,
        on_progress: OnProgress | None,
        attention: AttentionRecorder | None = None,
    ) -> Generation:
        """Generate a clip at once."""
        latents = self._all_stages(_run_of(job, contexts, self.components.dtype, on_progress, attention))
        finished = self._finished(
            job, self._picture(job, latents, on_progress), self._sound(job, latents, on_progress)
        )
        if attention is not None:
            before = round(finished.start * finished.frame_rate)  # a retake shows only what was worked on
            attention.place(job.mode.first_frame - before, job.plan.canvas.num_frames)
        return finished

    @torch.no_grad()
    def together(
        self, jobs: Sequence[Prepared], contexts: Contexts, on_progress: OnProgress | None
    ) -> list[Generation]:
        """Generate clips that differ in prompt and seed only, in one batch.

        Args:
            contexts: Of all clips, along the batch.
        """
        run = Run(
            job=jobs[0],
            contexts=contexts,
            noise=SeveralNoises([job.request.seed for job in jobs]),
            on_progress=on_progress,
            num_clips=len(jobs),
        )
        latents = self._all_stages(run)
        clips = []
        for index, job in enumerate(jobs):
            own = latents.map(partial(_item, index))
            picture, sound = self._picture(job, own, on_progress), self._sound(job, own, on_progress)
            clips.append(self._finished(job, picture, sound))
        return clips

    def collected(self, job: Prepared, contexts: Contexts, on_progress: OnProgress | None) -> Generation:
        """Generate the one stream of a long clip that is not given or absent, window by window."""
        made = list(self._made(job, contexts, on_progress))
        pixels = [part.pixels for part in made if part.pixels is not None]
        waveforms = [part.waveform for part in made if part.waveform is not None]
        joined = (torch.cat(parts, dim=1) if parts else None for parts in (pixels, waveforms))
        return self._finished(job, *joined)

    def _all_stages(self, run: Run) -> AV[Tensor]:
        """Run all stages, take LoRAs out of force, and return the latents of the last stage."""
        try:
            return self._latents(run)[-1]
        finally:
            self._loras.release()

    def _finished(self, job: Prepared, pixels: Tensor | None, waveform: Tensor | None) -> Generation:
        """Let the mode complete what was made."""
        made = Generation(
            pixels=pixels,
            waveform=waveform,
            sample_rate=self._vocoder.sample_rate,
            frame_rate=job.plan.canvas.frame_rate,
            request=job.request,
            model=self.model,
            weights=self.weights,
            notes=job.plan.notes,
        )
        finished = job.mode.finish(made)
        return replace(finished, notes=(*finished.notes, *lora_notes(job.loras, self.components.checkpoint)))

    @torch.no_grad()
    def assist(self, job: Prepared, contexts: Contexts) -> None:
        """Do a process's share of a clip that another process decodes."""
        if job.plan.canvas.windows is None:
            self._all_stages(_run_of(job, contexts, self.components.dtype, None))
        else:  # what a window hands over is decoded, so every process decodes
            for part in self.windows(job, contexts, None):
                del part

    @torch.no_grad()
    def parts(self, job: Prepared, contexts: Contexts, on_progress: OnProgress | None) -> Iterator[Part]:
        """Generate a clip at once, and decode it part after part, so that its frames are never held together.

        The sound is decoded beside the first part of the picture, which carries all of it.
        """
        latents = self._all_stages(_run_of(job, contexts, self.components.dtype, on_progress))
        assert latents.video is not None
        assert latents.audio is not None
        waveform: Tensor | None = None
        begin = 0
        budget = self.components.decode_budget
        with ExitStack() as beside:
            sound = self._begin_sound(job, latents, beside)
            for pixels in stream_video(self._video_vae, latents.video, on_progress, budget=budget):
                part = job.plan.canvas.cut(pixels, begin).clamp(-1, 1)
                begin += pixels.shape[1]
                del pixels
                if waveform is None:
                    waveform = sound.result(on_progress, "decode_audio")
                    assert waveform is not None
                    beside.close()
                if part.shape[1]:
                    yield Part(part, waveform)
                waveform = waveform[:, :0]
                del part

    def _begin_sound(self, job: Prepared, latents: AV[Tensor], until: ExitStack) -> Pending[Tensor | None]:
        """Begin to decode the sound; before the picture, if the networks of both have to take turns.

        Args:
            until: Is closed when the sound is done; the networks stay on the device that long.
        """
        networks = (self._video_vae, self._audio_vae, self._vocoder)
        at_once = fit_together(*networks)
        if at_once:
            until.enter_context(in_use(*networks))
        beside = until.enter_context(closing(Beside(self.components.device)))
        sound = beside.start(lambda: self._sound(job, latents, None))
        if not at_once:
            sound.result()
        return sound

    @torch.no_grad()
    def windows(self, job: Prepared, contexts: Contexts, on_progress: OnProgress | None) -> Iterator[Part]:
        """Generate a long clip window by window; each takes over the end of the one before."""
        canvas, done = job.plan.canvas, 0
        carried = job.mode.carried(canvas)
        for pixels, waveform in self._made(job, contexts, on_progress):
            assert pixels is not None
            before, done = done, done + pixels.shape[1]
            if carried is not None:
                begin, end = (canvas.num_samples(carried.sample_rate, n) for n in (before, done))
                waveform = carried.waveform[:, begin:end]
            assert waveform is not None
            yield Part(pixels, waveform)

    @torch.no_grad()
    def _made(self, job: Prepared, contexts: Contexts, on_progress: OnProgress | None) -> Iterator[Made]:
        """Generate what is not given, window by window."""
        try:
            yield from self._windows(job, contexts, on_progress)
        finally:
            self._loras.release()

    def _windows(self, job: Prepared, contexts: Contexts, on_progress: OnProgress | None) -> Iterator[Made]:
        request, plan, windows = job.request, job.plan, job.plan.canvas.windows
        assert windows is not None
        progress = WindowProgress(on_progress, windows.count)
        progress()
        joiner = Joiner(plan.canvas, windows, self._vocoder.sample_rate)
        generates, components = job.mode.generates, self.components
        steady = drift_controls(request.drift_control, plan.stages, windows)
        given: list[Handover] = []
        for index in range(windows.count):
            start = index * windows.advance / plan.canvas.frame_rate
            run = Run(
                job=job,
                contexts=contexts.starting_at(float(start)),
                noise=NOISE_ORDERS[request.noise_order](window_seed(request.seed, index), components.dtype),
                on_progress=progress,
                given=given,
                start=start,
            )
            latents = [
                replace(pair, video=correct(pair.video)) if pair.video is not None else pair
                for correct, pair in zip(steady, self._latents(run), strict=True)
            ]
            pixels, waveform = self._decode(latents[-1], generates, progress)
            if not joiner.is_last:
                given = [
                    hand_over(pair, pixels, stage, windows, components.video_vae, components.audio_geometry)
                    for pair, stage in zip(latents, plan.stages, strict=True)
                ]
            progress.finish_window()
            yield joiner.add(None if pixels is None else plan.canvas.cut(pixels), waveform)

    def _latents(self, run: Run) -> list[AV[Tensor]]:
        """Run all stages and return the normalised latents of each."""
        plan, request = run.job.plan, run.job.request

        def states(index: int) -> AV[StreamState]:
            given = run.job.mode.states(self._setting(run, plan.stages[index]))
            return given if run.num_clips == 1 else given.map(lambda state: state.repeated(run.num_clips))

        def denoiser(stage: Stage, streams: AV[StreamState]) -> Denoiser:
            if run.attention is not None:
                num_blocks = self._transformer.config.num_layers
                run.attention.begin(stage.recipe.sigmas, streams, stage.grid, num_blocks)
            cache = step_cache(run.job.request.step_cache, stage, streams)

            at_once = run.job.rows_at_once.get(stage.name)

            def make(streams: AV[StreamState], rows_at_once: int | None) -> Denoiser:
                return TransformerDenoiser(
                    self._transformer,
                    streams,
                    run.contexts,
                    stage.recipe.guidance,
                    rows_at_once=rows_at_once,
                    recorder=run.attention,
                    keep_texts=self.components.keep_texts,
                    cache=cache,
                    forward=self.forward,
                )

            if self.team.world.size == 1:
                return make(streams, at_once)
            return TeamDenoiser(make, self._transformer, streams, self.team, at_once)

        def before(number: int) -> None:
            self._loras.use(run.job.loras, request.lora_mode, stage=number, on_progress=run.on_progress)

        inputs = Inputs(
            states=states,
            denoiser=denoiser,
            noise=run.noise,
            on_progress=run.on_progress,
            before=before,
            given=run.given,
        )
        return self._runner.run(plan, inputs)

    def _setting(self, run: Run, stage: Stage) -> Setting:
        return Setting(
            canvas=run.job.plan.canvas,
            grid=stage.grid,
            audio_geometry=self.components.audio_geometry,
            num_audio_tokens=run.job.plan.audio_tokens,
            encoders=Encoders(self.components),
            start=run.start,
        )

    def _picture(self, job: Prepared, latents: AV[Tensor], on_progress: OnProgress | None) -> Tensor | None:
        """Decode the picture, if the mode generates one."""
        if "video" not in job.mode.generates or latents.video is None:
            return None
        budget = self.components.decode_budget
        pixels = decode_video(self._video_vae, latents.video, on_progress, budget=budget)
        return job.plan.canvas.cut(pixels).clamp(-1, 1)

    def _sound(self, job: Prepared, latents: AV[Tensor], on_progress: OnProgress | None) -> Tensor | None:
        """Decode the sound, if the mode generates one, to exactly the clip's length."""
        if "audio" not in job.mode.generates or latents.audio is None:
            return None
        waveform = decode_audio(self._audio_vae, self._vocoder, latents.audio, on_progress)
        rate = self._vocoder.sample_rate
        return fit_sound(waveform, job.plan.canvas.num_samples(rate), rate).clamp(-1, 1)

    def _decode(
        self, latents: AV[Tensor], generates: Sequence[Stream], on_progress: OnProgress | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Decode what was generated to what is seen and heard, not cut yet."""
        pixels = waveform = None
        if "video" in generates:
            assert latents.video is not None
            budget = self.components.decode_budget
            pixels = decode_video(self._video_vae, latents.video, on_progress, budget=budget)
        if "audio" in generates:
            assert latents.audio is not None
            waveform = decode_audio(self._audio_vae, self._vocoder, latents.audio, on_progress)
        return pixels, waveform

    @property
    def _transformer(self) -> AVTransformer:
        assert self.components.transformer is not None
        return self.components.transformer

    @property
    def _video_vae(self) -> VideoVAE:
        assert self.components.video_vae is not None
        return self.components.video_vae

    @property
    def _audio_vae(self) -> AudioVAE:
        assert self.components.audio_vae is not None
        return self.components.audio_vae

    @property
    def _vocoder(self) -> Vocoder:
        assert self.components.vocoder is not None
        return self.components.vocoder


def _item(index: int, batch: Tensor) -> Tensor:
    return batch[index : index + 1]
