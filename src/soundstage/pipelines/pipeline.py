"""The main job: a prompt in, a clip with sound out.

prompt ──▶ text encoder ──▶ contexts ─┐
request ─▶ plan, mode ────▶ states ───┴▶ denoise both streams together, stage by stage ─▶ latents
                                             latents ─▶ video VAE ────────────▶ pixels ───┐
                                             latents ─▶ audio VAE ─▶ vocoder ─▶ waveform ─┴▶ Generation
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundstage.checkpoints.checkpoint import Checkpoint, open_checkpoint
from soundstage.checkpoints.releases import resolve
from soundstage.core.errors import CheckpointError, RequestError
from soundstage.core.progress import OnProgress
from soundstage.core.types import AV, Context
from soundstage.diffusion.denoise import denoise, start
from soundstage.models.transformer.patchify import unpatchify_audio, unpatchify_video
from soundstage.pipelines.attention_recorder import AttentionRecorder
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.decode import StageProgress, decode_audio, decode_video
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.enhance import check_can_enhance, enhance
from soundstage.pipelines.generation import Generation, fit_sound
from soundstage.pipelines.loading import FOR_GENERATION, Components, default_dtype, load_checkpoint
from soundstage.pipelines.modes import MODES, Setting, mode_of
from soundstage.pipelines.noise import NOISE_ORDERS, NoiseSource
from soundstage.pipelines.plan import Plan, Stage, one_stage
from soundstage.pipelines.prompt_cache import PromptCache, cache_folder
from soundstage.pipelines.prompt_encoder import PromptEncoder
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.text_conditioning import Contexts, make_contexts
from soundstage.runtime.device import find_device

EMBEDDED = "embedded"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Steers official checkpoints away from what they otherwise tend to. The embedded model learnt to do without a
# caption from empty ones, so that is its negative prompt.
NEGATIVE_PROMPT = (
    "subtitles, captions, watermark, logo, blurred rectangle, fade to black, blurry, out of focus, noisy, "
    "grainy, flickering, frozen picture, warped anatomy, extra limbs, distorted face, overexposed, muffled "
    "or clipped sound, robotic voice, cut-off speech, sound out of step with the picture"
)


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
        for name in FOR_GENERATION:
            if getattr(components, name) is None and not (name == "text" and prompts):
                raise CheckpointError(f"{components.checkpoint.label} was loaded without its {name}")
        assert prompts is not None
        assert components.transformer is not None
        assert components.video_vae is not None
        assert components.audio_vae is not None
        assert components.vocoder is not None
        self.components = components
        self.model = model
        self.prompts = prompts
        self.transformer = components.transformer
        self.video_vae = components.video_vae
        self.audio_vae = components.audio_vae
        self.vocoder = components.vocoder

    @classmethod
    def load(
        cls,
        model: str | Path = EMBEDDED,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        text_encoder: Path | None = None,
        prompt_cache: str | Path | None = None,
        on_progress: OnProgress | None = None,
    ) -> "Pipeline":
        """Load a model: the embedded one, a release by name, a file or a directory.

        Args:
            device: "auto" takes a GPU if there is one.
            dtype: Of the weights: "float32" or "bfloat16"; what suits model and device when absent.
            text_encoder: Directory of the Gemma text encoder, for checkpoints that come without.
            prompt_cache: Where encoded prompts are kept on disk: "on", "off" or a folder. On for models whose
                text encoder is large, which is then loaded only for prompts that are new.

        Raises:
            CheckpointError: Something is missing or damaged; says what to do.
            RequestError: There is no such device or number format, or the cache cannot be written.
        """
        place, checkpoint = find_device(device), open_checkpoint(resolve(model))
        wanted, cache = _dtype(dtype), _cache(prompt_cache, checkpoint)
        if cache is None:
            components = load_checkpoint(
                checkpoint, device=place, dtype=wanted, text_encoder=text_encoder, on_progress=on_progress
            )
            return cls(components, model=Path(model).name)
        prompts = PromptEncoder.lazy(
            checkpoint,
            text_encoder,
            cache,
            device=place,
            dtype=wanted or default_dtype(place, checkpoint.num_bytes),
            on_progress=on_progress,
        )
        components = load_checkpoint(
            checkpoint,
            device=place,
            dtype=wanted,
            components=[name for name in FOR_GENERATION if name != "text"],
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
        """
        if request.enhance:
            check_can_enhance(self.prompts)
        spans = [span.prompt for span in request.spans]
        negative = filter(None, (request.negative_prompt, request.audio_negative_prompt))
        # An enhanced prompt is measured when it is written.
        for prompt in (*spans, *negative, *(() if request.enhance else (request.prompt,))):
            self.prompts.check_length(prompt)
        plan = one_stage(request, self.components.defaults, self.components.video_geometry)
        for stage in plan.stages:
            self._check_blocks(stage)
        length = float(plan.canvas.num_frames / plan.canvas.frame_rate)
        for span in request.spans:
            if span.start >= length:
                raise RequestError(f"prompt_at begins at {span.start:g} s, the clip ends at {length:g} s")
        return plan

    @torch.no_grad()
    def _generate(
        self,
        request: GenerationRequest,
        on_progress: OnProgress | None,
        attention: AttentionRecorder | None = None,
    ) -> Generation:
        plan = self.plan(request)
        worded, notes = self._worded(request, on_progress)
        contexts = self._encode(worded, plan, on_progress)
        noise = NOISE_ORDERS[request.noise_order](request.seed)
        latents: AV[Tensor] = AV()
        for stage in plan.stages:
            latents = self._denoise(request, plan, stage, contexts, noise, on_progress, attention)
        assert latents.video is not None
        assert latents.audio is not None
        pixels = decode_video(self.video_vae, latents.video, on_progress)
        waveform = decode_audio(self.audio_vae, self.vocoder, latents.audio, on_progress)
        rate = self.vocoder.sample_rate
        return Generation(
            pixels=plan.canvas.cut(pixels).clamp(-1, 1),
            waveform=fit_sound(waveform, plan.canvas.num_samples(rate), rate).clamp(-1, 1),
            sample_rate=rate,
            frame_rate=plan.canvas.frame_rate,
            request=request,
            model=self.model,
            notes=plan.canvas.notes + notes,
        )

    def _denoise(
        self,
        request: GenerationRequest,
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
            request=request,
            grid=stage.grid,
            audio_geometry=sound,
            num_audio_tokens=sound.num_tokens(plan.canvas.padded_frames, plan.canvas.frame_rate),
        )
        streams = MODES[mode_of(request)](setting).map(self._to_device)
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

    def _to_device(self, state: StreamState) -> StreamState:
        return state.to(self.components.device)

    def _worded(
        self, request: GenerationRequest, on_progress: OnProgress | None
    ) -> tuple[GenerationRequest, tuple[str, ...]]:
        """Rewrite the prompt if the request wants it, and say so."""
        if not request.enhance:
            return request, ()
        progress = StageProgress(on_progress)
        progress("enhance_prompt", 0, 1)
        enhanced = enhance(self.prompts, request.prompt, request.seed)
        self.prompts.check_length(enhanced)
        progress("enhance_prompt", 1, 1)
        note = f"prompt {request.prompt!r} was enhanced to {enhanced!r}"
        return replace(request, prompt=enhanced), (note,)

    def _encode(self, request: GenerationRequest, plan: Plan, on_progress: OnProgress | None) -> Contexts:
        """Encode what the passes read; a prompt that was met before is not encoded again."""
        prompts = [request.prompt, *(span.prompt for span in request.spans)]
        steers = max(request.nag_scales) > 1
        negative = self._negative_prompts(request) if plan.needs_negative_prompt or steers else ()
        wanted = list(dict.fromkeys((*prompts, *negative)))
        progress = StageProgress(on_progress)
        contexts: dict[str, AV[Context]] = {}
        for prompt in wanted:
            progress("encode_prompt", len(contexts), len(wanted))
            contexts[prompt] = self.prompts.encode(prompt)
        progress("encode_prompt", len(wanted), len(wanted))
        away = AV(contexts[negative[0]].video, contexts[negative[1]].audio) if negative else None
        return make_contexts(
            request, [contexts[prompt] for prompt in prompts], away, guided=plan.needs_negative_prompt
        )

    def _negative_prompts(self, request: GenerationRequest) -> tuple[str, str]:
        """Settle what picture and sound are steered away from."""
        common = request.negative_prompt
        if common is None:
            common = "" if self.components.generation.name == EMBEDDED else NEGATIVE_PROMPT
        own = request.audio_negative_prompt
        return common, common if own is None else own

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


def _cache(asked: str | Path | None, checkpoint: Checkpoint) -> PromptCache | None:
    """Find the cache of encoded prompts; by default none where encoding takes no time."""
    if asked is None:
        asked = "off" if checkpoint.generation.name == EMBEDDED else "on"
    if asked == "off":
        return None
    return PromptCache(cache_folder() if asked == "on" else Path(asked).expanduser())


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise RequestError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]
