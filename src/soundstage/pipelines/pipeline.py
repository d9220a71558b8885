"""The main job: a prompt in, a clip with sound out.

prompt ──▶ text encoder ──▶ contexts ─┐
request ─▶ plan, mode ────▶ states ───┴▶ denoise both streams together, stage by stage ─▶ latents
                                             latents ─▶ video VAE ────────────▶ pixels ───┐
                                             latents ─▶ audio VAE ─▶ vocoder ─▶ waveform ─┴▶ Generation
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundstage.core.errors import CheckpointError, RequestError
from soundstage.core.progress import OnProgress
from soundstage.core.types import AV
from soundstage.diffusion.denoise import denoise, start
from soundstage.models.transformer.patchify import unpatchify_audio, unpatchify_video
from soundstage.models.video_vae.model import VideoVAE
from soundstage.pipelines.attention_recorder import AttentionRecorder
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.decode import decode_audio, decode_video
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.encode import Encoders
from soundstage.pipelines.generation import Generation, fit_sound
from soundstage.pipelines.loading import FOR_GENERATION, FOR_SOUND, Components
from soundstage.pipelines.loras import ChosenLora, choose_loras, lora_notes, loras_in_force
from soundstage.pipelines.modes.mode import SOUND, Mode, Model, Setting
from soundstage.pipelines.modes.registry import mode_for
from soundstage.pipelines.noise import NOISE_ORDERS, NoiseSource
from soundstage.pipelines.opening import open_model
from soundstage.pipelines.plan import Plan, Stage, one_stage
from soundstage.pipelines.prompt_encoder import PromptEncoder
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.text_conditioning import Contexts
from soundstage.pipelines.wording import EMBEDDED, check_spans, check_wording, encode_wording, worded


class Pipeline:
    """The networks of one model, kept loaded, and what makes clips of requests with them."""

    def __init__(
        self, components: Components, *, model: str = "", prompts: PromptEncoder | None = None
    ) -> None:
        """Take loaded components.

        Args:
            model: Name that results carry.
            prompts: The text side, where it is not among the components.

        Raises:
            CheckpointError: A component that generation needs was not loaded.
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

        Raises:
            CheckpointError: Something is missing or damaged; says what to do.
            RequestError: There is no such device or number format, or the cache cannot be written.
        """
        components, prompts = open_model(
            model,
            device=device,
            dtype=dtype,
            text_encoder=text_encoder,
            prompt_cache=prompt_cache,
            sound_only=sound_only,
            on_progress=on_progress,
        )
        return cls(components, model=Path(model).name, prompts=prompts)

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

    def plan(self, request: GenerationRequest) -> Plan:
        """Settle everything that can be settled before computing.

        Raises:
            RequestError: The request does not go with this model.
            CheckpointError: A LoRA does not.
        """
        return self._prepare(request)[1]

    def _prepare(self, request: GenerationRequest) -> tuple[Mode, Plan]:
        """Find the mode, and plan the clip that it asks for."""
        if self.transformer.streams == SOUND and not request.no_video:
            raise RequestError(f"{self.model} was loaded for sound only; ask for no_video, or load all of it")
        check_wording(self.prompts, request)
        model = Model(
            defaults=self.components.defaults,
            geometry=self.components.video_geometry,
            image_crf=self.components.generation.image_crf,
        )
        mode = mode_for(request, model)
        plan = one_stage(mode.request, self.components.defaults, self.components.video_geometry)
        for stage in plan.stages:
            self._check_blocks(stage)
        self._loras(request, plan)
        begin = mode.first_frame / plan.canvas.frame_rate
        check_spans(request, begin, begin + plan.canvas.num_frames / plan.canvas.frame_rate)
        return mode, plan

    @torch.no_grad()
    def _generate(
        self,
        request: GenerationRequest,
        on_progress: OnProgress | None,
        attention: AttentionRecorder | None = None,
    ) -> Generation:
        mode, plan = self._prepare(request)
        said, notes = worded(self.prompts, request, on_progress)
        guided = plan.needs_negative_prompt
        contexts = encode_wording(self.prompts, said, self.components.generation, on_progress, guided=guided)
        contexts = contexts.starting_at(float(Fraction(mode.first_frame) / plan.canvas.frame_rate))
        noise = NOISE_ORDERS[request.noise_order](request.seed)
        loras = self._loras(request, plan)
        latents: AV[Tensor] = AV()
        for number, stage in enumerate(plan.stages, start=1):
            with loras_in_force(
                self.transformer, loras, request.lora_mode, stage=number, on_progress=on_progress
            ):
                latents = self._denoise(mode, plan, stage, contexts, noise, on_progress, attention)
        made = Generation(
            pixels=self._picture(mode, plan, latents, on_progress),
            waveform=self._sound(mode, plan, latents, on_progress),
            sample_rate=self.vocoder.sample_rate,
            frame_rate=plan.canvas.frame_rate,
            request=request,
            model=self.model,
            notes=(*plan.canvas.notes, *lora_notes(loras, self.components.checkpoint)),
        )
        finished = mode.finish(made)
        return replace(finished, notes=finished.notes + notes)

    def _picture(
        self, mode: Mode, plan: Plan, latents: AV[Tensor], on_progress: OnProgress | None
    ) -> Tensor | None:
        """Decode the picture, if the mode generates one."""
        if "video" not in mode.generates or latents.video is None:
            return None
        pixels = decode_video(self.video_vae, latents.video, on_progress)
        return plan.canvas.cut(pixels).clamp(-1, 1)

    def _sound(
        self, mode: Mode, plan: Plan, latents: AV[Tensor], on_progress: OnProgress | None
    ) -> Tensor | None:
        """Decode the sound, if the mode generates one, to exactly the clip's length."""
        if "audio" not in mode.generates or latents.audio is None:
            return None
        waveform = decode_audio(self.audio_vae, self.vocoder, latents.audio, on_progress)
        rate = self.vocoder.sample_rate
        return fit_sound(waveform, plan.canvas.num_samples(rate), rate).clamp(-1, 1)

    def _denoise(
        self,
        mode: Mode,
        plan: Plan,
        stage: Stage,
        contexts: Contexts,
        noise: NoiseSource,
        on_progress: OnProgress | None,
        attention: AttentionRecorder | None,
    ) -> AV[Tensor]:
        """Run one stage and return normalised latents."""
        sound = self.components.audio_geometry
        setting = Setting(
            canvas=plan.canvas,
            grid=stage.grid,
            audio_geometry=sound,
            num_audio_tokens=sound.num_tokens(plan.canvas.padded_frames, plan.canvas.frame_rate),
            encoders=Encoders(self.components),
        )
        streams = mode.states(setting).map(self._to_device)
        if attention is not None:
            attention.begin(stage.recipe.sigmas, streams, stage.grid, self.transformer.config.num_layers)
        denoiser = TransformerDenoiser(
            self.transformer, streams, contexts, stage.recipe.guidance, recorder=attention
        )
        noisy = start(streams, noise.initial(streams), scale=stage.noise_scale)
        tokens = denoise(denoiser, streams, noisy, stage.recipe, draw=noise.draw, on_progress=on_progress)
        video, audio = tokens.video, tokens.audio
        if video is not None and streams.video is not None:
            patch_size = stage.grid.geometry.patch_size
            video = unpatchify_video(streams.video.result(video), stage.grid.latent_shape, patch_size)
        if audio is not None and streams.audio is not None:
            audio = unpatchify_audio(streams.audio.result(audio), sound.channels)
        return AV(video, audio)

    def _loras(self, request: GenerationRequest, plan: Plan) -> tuple[ChosenLora, ...]:
        checkpoint, num_stages = self.components.checkpoint, len(plan.stages)
        return choose_loras(request.loras, self.transformer, checkpoint, num_stages=num_stages)

    def _loras(self, request: GenerationRequest, plan: Plan) -> tuple[ChosenLora, ...]:
        if request.loras and self.transformer.streams == SOUND:
            raise RequestError("LoRAs are for the whole model, and this one was loaded for sound only")
        checkpoint, num_stages = self.components.checkpoint, len(plan.stages)
        return choose_loras(request.loras, self.transformer, checkpoint, num_stages=num_stages)

    def _to_device(self, state: StreamState) -> StreamState:
        return state.to(self.components.device)

    def _check_blocks(self, stage: Stage) -> None:
        """Refuse guidance that perturbs blocks which this model does not have."""
        last = self.transformer.config.num_layers - 1
        blocks = stage.recipe.guidance.blocks
        for name, given in (("stg_blocks", blocks.video), ("audio_stg_blocks", blocks.audio)):
            for block in sorted(given or ()):
                if block > last:
                    raise RequestError(f"{name}: block {block} does not exist; this model's are 0 to {last}")


def _request(prompt: str | GenerationRequest, fields: dict[str, Any]) -> GenerationRequest:
    if isinstance(prompt, str):
        return GenerationRequest.of({"prompt": prompt, **fields})
    return GenerationRequest.of({**prompt.to_dict(), **fields}) if fields else prompt
