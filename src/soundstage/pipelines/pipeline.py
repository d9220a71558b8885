"""The main job: a prompt in, a clip with sound out.

prompt ──▶ text encoder ──▶ contexts ─┐
request ─▶ plan, mode ────▶ states ───┴▶ denoise both streams together, stage by stage ─▶ latents
                               ▲                                            │
                               └──── enlarged, for the next stage ◀─────────┤ (a long clip: window by window)
                                                                            ▼
                                             latents ─▶ video VAE ────────────▶ pixels ───┐
                                             latents ─▶ audio VAE ─▶ vocoder ─▶ waveform ─┴▶ Generation
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from soundstage.core.errors import CheckpointError, RequestError
from soundstage.core.progress import OnProgress
from soundstage.models.video_vae.model import VideoVAE
from soundstage.pipelines.attention_recorder import AttentionRecorder
from soundstage.pipelines.compute import Compute
from soundstage.pipelines.equipment import Equipment, equip
from soundstage.pipelines.fitting import BLENDED
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.given import mode_of
from soundstage.pipelines.loading import AS_STORED, FOR_GENERATION, FOR_SOUND, Components
from soundstage.pipelines.loras import (
    ChosenLora,
    check_stage,
    choose_loras,
    lora_notes,
    prompts_in_force,
    with_reference_factors,
)
from soundstage.pipelines.making import ClipMaker
from soundstage.pipelines.modes.mode import SOUND
from soundstage.pipelines.modes.pictures import crowded
from soundstage.pipelines.opening import open_model
from soundstage.pipelines.placed import EVERYWHERE, Placed
from soundstage.pipelines.placement import make_room
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.plan import Basis, Plan
from soundstage.pipelines.preparation import (
    Prepared,
    check_attention,
    check_blocks,
    check_together,
    comes_in_parts,
    is_streamed,
    prepare,
)
from soundstage.pipelines.prompt_encoder import PromptEncoder
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.step_caching import check_step_cache
from soundstage.pipelines.stream import ClipStream
from soundstage.pipelines.teamwork import check_loras, settle_exchange
from soundstage.pipelines.text_conditioning import Contexts, joined
from soundstage.pipelines.windows import Part
from soundstage.pipelines.wording import EMBEDDED, check_wording, encode_wording, worded
from soundstage.runtime.distributed import Team
from soundstage.runtime.sharding import is_sharded


class Pipeline:
    """The networks of one model, kept loaded, and what makes clips of requests with them."""

    def __init__(
        self,
        components: Components,
        *,
        model: str = "",
        prompts: PromptEncoder | None = None,
        compute: Compute | None = None,
        placed: Placed = EVERYWHERE,
    ) -> None:
        """Take loaded components.

        Args:
            model: Name that results carry.
            prompts: The text side, where it is not among the components.
            compute: How the transformer computes; as it is when absent.
            placed: Where the weights are.

        Raises:
            CheckpointError: A component that generation needs was not loaded.
            RequestError: It cannot compute in that way here.
        """
        if prompts is None and components.text is not None:
            prompts = PromptEncoder.of(components.text)
        sound_only = components.transformer is not None and components.transformer.streams == SOUND
        for name in FOR_SOUND if sound_only else FOR_GENERATION:
            if getattr(components, name) is None and not (name == "text" and prompts):
                raise CheckpointError(f"{components.checkpoint.label} was loaded without its {name}")
        assert prompts is not None
        assert components.transformer is not None
        assert components.audio_vae is not None
        assert components.vocoder is not None
        self.components = components
        self.model = model
        self.prompts = prompts
        self.transformer = components.transformer
        self.audio_vae = components.audio_vae
        self.vocoder = components.vocoder
        self._placed = placed
        self.equipment: Equipment | None = None
        if compute is not None:
            self.equipment = equip(self.transformer, compute, components.device, components.dtype)
        self._maker = ClipMaker(components, model, self.equipment.forward if self.equipment else None)

    @property
    def video_vae(self) -> VideoVAE:
        """The video VAE.

        Raises:
            CheckpointError: The model was loaded for sound only.
        """
        if self.components.video_vae is None:
            raise CheckpointError(f"{self.components.checkpoint.label} was loaded without its video_vae")
        return self.components.video_vae

    @classmethod
    def load(
        cls,
        model: str | Path = EMBEDDED,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        text_encoder: Path | None = None,
        prompt_cache: str | Path | None = None,
        sound_only: bool = False,
        placing: Placing = AS_STORED,
        requests: Sequence[GenerationRequest] = (),
        num_clips: int = 1,
        compute: Compute | None = None,
        team: Team | None = None,
        on_progress: OnProgress | None = None,
    ) -> "Pipeline":
        """Load a model: the embedded one, a release by name, a file or a directory.

        Args:
            device: "auto" takes a GPU if there is one.
            dtype: Of the weights: "float32" or "bfloat16"; what suits model and device when absent.
            text_encoder: Directory of the Gemma text encoder, for checkpoints that come without.
            prompt_cache: Where encoded prompts are kept on disk: "on", "off" or a folder. On for models whose
                text encoder is large, which is then loaded only for prompts that are new.
            sound_only: Read no weight that only pictures need; requests must then have `no_video`.
            placing: In which format weights are kept, and where those wait that do not fit on the device.
            requests: What is to be made, as far as it is known: the room that is left for it.
            num_clips: Clips of a request that are made together.
            compute: What attends, which kernels run, what is compiled; the fastest exact ways when absent.
            team: The processes to work with, see `share`; of weights that they share only a part is read.

        Raises:
            CheckpointError: Something is missing or damaged, or no request's LoRAs go with the model; says
                what to do.
            RequestError: There is no such device, number format or way to compute, the cache cannot be
                written, or the work cannot be shared so.
            ResourceError: The model does not fit on the device; says what would.
        """
        components, prompts, placed = open_model(
            model,
            device=device,
            dtype=dtype,
            text_encoder=text_encoder,
            prompt_cache=prompt_cache,
            sound_only=sound_only,
            placing=placing,
            requests=requests,
            num_clips=num_clips,
            compute=compute,
            team=team,
            on_progress=on_progress,
        )
        name = Path(model).name
        pipeline = cls(components, model=name, prompts=prompts, compute=compute or Compute(), placed=placed)
        if team is not None:
            pipeline.share(team)
        return pipeline

    def __call__(
        self,
        prompt: str | GenerationRequest,
        *,
        on_progress: OnProgress | None = None,
        attention: AttentionRecorder | None = None,
        **fields: Any,
    ) -> Generation:
        """Generate one clip.

        Args:
            prompt: What is to be seen and heard, or a whole request.
            on_progress: Told of every step; may raise `Cancelled`.
            attention: Shown how picture and sound attend to each other; changes nothing about the clip.
            fields: Further fields of the request.

        Raises:
            RequestError: The request cannot be fulfilled; says what could.
        """
        return self._generate(_request(prompt, fields), on_progress, attention)

    def each(
        self,
        prompts: Sequence[str | GenerationRequest],
        *,
        num_videos: int = 1,
        on_progress: OnProgress | None = None,
        **fields: Any,
    ) -> Iterator[Generation]:
        """Generate clips one after another; clip i of a prompt has the request's seed plus i.

        All requests are checked before the first clip is begun.
        """
        if num_videos < 1:
            raise RequestError(f"num_videos={num_videos} is not positive; the least is 1")
        requests = [_request(prompt, fields) for prompt in prompts]
        copies = [replace(request, seed=request.seed + i) for request in requests for i in range(num_videos)]
        for request in copies:
            self.plan(request)
        return (self._generate(request, on_progress) for request in copies)

    def together(
        self,
        requests: Sequence[GenerationRequest],
        *,
        on_progress: OnProgress | None = None,
    ) -> list[Generation]:
        """Generate clips in one batch: each is what it would be alone, but for rounding.

        Raises:
            RequestError: The requests differ in more than prompt and seed, or want what is made one at a
                time: given files, windows, prompts in time, rewritten prompts, the official order of noise.
        """
        check_together(requests)
        jobs = [self._prepare(request, num_clips=len(requests)) for request in requests]
        if any(job.plan.canvas.windows is not None for job in jobs):
            raise RequestError("long clips come in windows, one clip at a time")
        contexts = [self._encoded(job, job.request, on_progress) for job in jobs]
        return self._maker.together(jobs, joined(contexts), on_progress)

    def plan(self, request: GenerationRequest, *, num_clips: int = 1) -> Plan:
        """Settle everything that can be settled before computing.

        Args:
            num_clips: Clips that are made together.

        Raises:
            RequestError: The request does not go with this model.
            CheckpointError: A LoRA or an upsampler does not, or is not there.
            MediaError: What is given cannot be read.
            ResourceError: The memory that is there does not suffice; says what to do.
        """
        return self._prepare(request, num_clips).plan

    def comes_in_parts(self, request: GenerationRequest) -> bool:
        """Tell whether `stream` makes a clip part by part, and not whole.

        Raises:
            RequestError: The request does not go with this model.
        """
        return comes_in_parts(self._prepare(request))

    def stream(
        self, prompt: str | GenerationRequest, *, on_progress: OnProgress | None = None, **fields: Any
    ) -> ClipStream:
        """Generate one clip while it is read, so that its frames are never held whole.

        A clip that comes in windows is generated window by window; any other is generated at once, as
        latents, and decoded part by part.

        Args:
            prompt: What is to be seen and heard, or a whole request.
            on_progress: Told of every step; may raise `Cancelled`. A long clip is one stage, "windows".
            fields: Further fields of the request.

        Raises:
            RequestError: The request cannot be fulfilled; says what could.
        """
        job = self._prepare(_request(prompt, fields))
        if not is_streamed(job):
            raise RequestError(f"{mode_of(job.request)} is not made part by part; call the pipeline for it")
        said, notes = self._worded(job, on_progress)
        make = self._windows if job.plan.canvas.windows else self._at_once
        canvas = job.plan.canvas
        carried = job.mode.carried(canvas)
        return ClipStream(
            make(job, said, on_progress),
            canvas=canvas,
            sample_rate=self.vocoder.sample_rate if carried is None else carried.sample_rate,
            original=None if carried is None else carried.original,
            request=job.request,
            model=self.model,
            weights=self._maker.weights,
            notes=(
                *job.plan.notes,
                *crowded(job.request, canvas.num_frames, canvas.frame_rate, canvas.grid.geometry),
                *lora_notes(job.loras, self.components.checkpoint),
                *notes,
            ),
        )

    def share(self, team: Team) -> None:
        """Work as one of several processes from now on; each loads the model and is given every request.

        The leading process calls the pipeline or `stream`, all others `assist`, with the same requests in the
        same order.

        Raises:
            RequestError: The model's heads cannot be dealt out to so many, attention is to be approximate, or
                weights are to be shared that were loaded whole.
        """
        if team.shards_weights and not is_sharded(self.transformer):
            raise RequestError("sharded weights are read so: give the team to Pipeline.load")
        if team.sequence.size > 1:
            settle_exchange(team, self.transformer, self.equipment)
        self._maker.team = team

    def assist(self, prompt: str | GenerationRequest, **fields: Any) -> None:
        """Do this process's share of a clip that the leading process makes."""
        job = self._prepare(_request(prompt, fields))
        said, _ = self._worded(job, None)
        self._maker.assist(job, self._encoded(job, said, None))

    def _windows(
        self, job: Prepared, said: GenerationRequest, on_progress: OnProgress | None
    ) -> Iterator[Part]:
        yield from self._maker.windows(job, self._encoded(job, said, on_progress), on_progress)

    def _at_once(
        self, job: Prepared, said: GenerationRequest, on_progress: OnProgress | None
    ) -> Iterator[Part]:
        contexts = self._encoded(job, said, on_progress)
        if comes_in_parts(job):
            yield from self._maker.parts(job, contexts, on_progress)
            return
        made = self._maker.whole(job, contexts, on_progress)
        assert made.pixels is not None
        assert made.waveform is not None
        yield Part(made.pixels, made.waveform)

    def _generate(
        self,
        request: GenerationRequest,
        on_progress: OnProgress | None,
        attention: AttentionRecorder | None = None,
    ) -> Generation:
        job = self._prepare(request)
        if attention is not None:
            check_attention(job)
        in_windows = job.plan.canvas.windows is not None
        if in_windows and is_streamed(job):
            return self.stream(request, on_progress=on_progress).collect()
        said, notes = self._worded(job, on_progress)
        contexts = self._encoded(job, said, on_progress)
        if in_windows:
            made = self._maker.collected(job, contexts, on_progress)
        else:
            made = self._maker.whole(job, contexts, on_progress, attention)
        return replace(made, notes=(*made.notes, *notes))

    def _prepare(self, request: GenerationRequest, num_clips: int = 1) -> Prepared:
        """Find the mode, plan the clip that it asks for, and check everything.

        Args:
            num_clips: Clips that are made together.
        """
        if self.transformer.streams == SOUND and not request.no_video:
            raise RequestError(f"{self.model} was loaded for sound only; ask for no_video, or load all of it")
        check_wording(self.prompts, request)
        components = self.components
        loras = self._loras(request)
        basis = Basis.of(components.checkpoint, components.video_geometry, components.audio_geometry)
        job = prepare(with_reference_factors(request, loras), basis)
        for lora in loras:
            check_stage(lora.option, len(job.plan.stages))
        check_blocks(job.plan, basis)
        check_step_cache(request.step_cache, job.plan.stages, self._maker.team)
        job = replace(job, loras=loras, num_clips=num_clips)
        self.components, job = make_room(self._placed, self.components, job)
        self._maker.components = self.components
        notes = (*job.plan.notes, BLENDED) if self._placed.blends else job.plan.notes
        return replace(job, request=request, plan=replace(job.plan, notes=notes))

    def _loras(self, request: GenerationRequest) -> tuple[ChosenLora, ...]:
        if request.loras and self.transformer.streams == SOUND:
            raise RequestError("LoRAs are for the whole model, and this one was loaded for sound only")
        if self._maker.team.shards_weights:
            check_loras([request])
        return choose_loras(request.loras, self.components.checkpoint)

    @torch.no_grad()
    def _worded(
        self, job: Prepared, on_progress: OnProgress | None
    ) -> tuple[GenerationRequest, tuple[str, ...]]:
        return worded(self.prompts, job.request, on_progress)

    @torch.no_grad()
    def _encoded(self, job: Prepared, said: GenerationRequest, on_progress: OnProgress | None) -> Contexts:
        guided, generation = job.plan.needs_negative_prompt, self.components.generation
        with prompts_in_force(self.prompts, job.loras, job.request.lora_mode, on_progress) as prompts:
            return encode_wording(prompts, said, generation, on_progress, guided=guided)


def _request(prompt: str | GenerationRequest, fields: dict[str, Any]) -> GenerationRequest:
    if isinstance(prompt, str):
        return GenerationRequest.of({"prompt": prompt, **fields})
    return GenerationRequest.of({**prompt.to_dict(), **fields}) if fields else prompt
