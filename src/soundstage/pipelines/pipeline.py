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
from contextlib import AbstractContextManager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundstage.core.errors import CheckpointError, RequestError
from soundstage.core.progress import OnProgress
from soundstage.core.types import AV, Context
from soundstage.diffusion.guidance import GuidancePlan
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.decode import StageProgress, decode_audio, decode_video
from soundstage.pipelines.denoiser import Contexts, TransformerDenoiser
from soundstage.pipelines.generation import Generation, fit_sound
from soundstage.pipelines.loading import FOR_GENERATION, Components, load_components
from soundstage.pipelines.loras import ChosenLora, choose_loras, lora_notes, loras_in_force
from soundstage.pipelines.modes import MODES, Setting, mode_of
from soundstage.pipelines.noise import NOISE_ORDERS, NoiseSource
from soundstage.pipelines.plan import Basis, Plan, Stage
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.runner import Inputs, StageRunner
from soundstage.pipelines.settle import settle
from soundstage.pipelines.stream import ClipStream, WindowProgress
from soundstage.pipelines.windows import (
    Handover,
    Joiner,
    Part,
    drift_controls,
    hand_over,
    window_seed,
)
from soundstage.runtime.device import find_device

EMBEDDED = "embedded"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_KEPT_CONTEXTS = 16

# Steers official checkpoints away from what they otherwise tend to. The embedded model learnt to do without a
# caption from empty ones, so that is its negative prompt.
NEGATIVE_PROMPT = (
    "subtitles, captions, watermark, logo, blurred rectangle, fade to black, blurry, out of focus, noisy, "
    "grainy, flickering, frozen picture, warped anatomy, extra limbs, distorted face, overexposed, muffled "
    "or clipped sound, robotic voice, cut-off speech, sound out of step with the picture"
)


class Pipeline:
    """The networks of one model, kept loaded, and what makes clips of requests with them."""

    def __init__(self, components: Components, *, model: str = "") -> None:
        """Take loaded components.

        Args:
            model: Name that results carry.

        Raises:
            CheckpointError: A component that generation needs was not loaded.
        """
        for name in FOR_GENERATION:
            if getattr(components, name) is None:
                raise CheckpointError(f"{components.checkpoint.label} was loaded without its {name}")
        assert components.text is not None
        assert components.transformer is not None
        assert components.video_vae is not None
        assert components.audio_vae is not None
        assert components.vocoder is not None
        self.components = components
        self.model = model
        self.text = components.text
        self.transformer = components.transformer
        self.video_vae = components.video_vae
        self.audio_vae = components.audio_vae
        self.vocoder = components.vocoder
        self._contexts: dict[str, AV[Context]] = {}
        self._runner = StageRunner(components, components.video_vae)

    @classmethod
    def load(
        cls,
        model: str | Path = EMBEDDED,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        text_encoder: Path | None = None,
        on_progress: OnProgress | None = None,
    ) -> "Pipeline":
        """Load a model: the embedded one, a release by name, a file or a directory.

        Args:
            device: "auto" takes a GPU if there is one.
            dtype: Of the weights: "float32" or "bfloat16"; what suits model and device when absent.
            text_encoder: Directory of the Gemma text encoder, for checkpoints that come without.

        Raises:
            CheckpointError: Something is missing or damaged; says what to do.
            RequestError: There is no such device or number format.
        """
        components = load_components(
            model,
            device=find_device(device),
            dtype=_dtype(dtype),
            text_encoder=text_encoder,
            on_progress=on_progress,
        )
        return cls(components, model=Path(model).name)

    def __call__(
        self, prompt: str | GenerationRequest, *, on_progress: OnProgress | None = None, **fields: Any
    ) -> Generation:
        """Generate one clip.

        Args:
            prompt: What is to be seen and heard, or a whole request.
            on_progress: Told of every step; may raise `Cancelled`.
            fields: Further fields of the request.

        Raises:
            RequestError: The request cannot be fulfilled; says what could.
        """
        return self._generate(_request(prompt, fields), on_progress)

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
        for prompt in (request.prompt, request.negative_prompt or ""):
            self._check_length(prompt)
        components = self.components
        basis = Basis.of(components.checkpoint, components.video_geometry, components.audio_geometry)
        plan = settle(request, basis)
        for stage in plan.stages:
            self._check_blocks(stage)
        self._loras(request, plan)
        return plan

    def stream(
        self, prompt: str | GenerationRequest, *, on_progress: OnProgress | None = None, **fields: Any
    ) -> ClipStream:
        """Generate one clip while it is read, so that a long one is never held whole.

        Args:
            prompt: What is to be seen and heard, or a whole request.
            on_progress: Told of every step; may raise `Cancelled`. A long clip is one stage, "windows".
            fields: Further fields of the request.

        Raises:
            RequestError: The request cannot be fulfilled; says what could.
        """
        request = _request(prompt, fields)
        plan = self.plan(request)
        make = self._windows if plan.canvas.windows else self._whole
        return ClipStream(
            make(request, plan, on_progress),
            canvas=plan.canvas,
            sample_rate=self.vocoder.sample_rate,
            request=request,
            model=self.model,
            notes=(*plan.notes, *lora_notes(self._loras(request, plan), self.components.checkpoint)),
        )

    def _generate(self, request: GenerationRequest, on_progress: OnProgress | None) -> Generation:
        return self.stream(request, on_progress=on_progress).collect()

    @torch.no_grad()
    def _whole(
        self, request: GenerationRequest, plan: Plan, on_progress: OnProgress | None
    ) -> Iterator[Part]:
        """Generate a clip at once."""
        contexts = self._encode(request, plan, on_progress)
        noise = NOISE_ORDERS[request.noise_order](request.seed)
        inputs = self._inputs(request, plan, contexts, noise, on_progress)
        pixels, waveform = self._decode(self._runner.run(plan, inputs)[-1], on_progress)
        rate = self.vocoder.sample_rate
        yield Part(
            plan.canvas.cut(pixels).clamp(-1, 1),
            fit_sound(waveform, plan.canvas.num_samples(rate), rate).clamp(-1, 1),
        )

    @torch.no_grad()
    def _windows(
        self, request: GenerationRequest, plan: Plan, on_progress: OnProgress | None
    ) -> Iterator[Part]:
        """Generate a long clip window by window; each takes over the end of the one before."""
        windows = plan.canvas.windows
        assert windows is not None
        contexts = self._encode(request, plan, on_progress)
        progress = WindowProgress(on_progress, windows.count)
        progress()
        joiner = Joiner(plan.canvas, windows, self.vocoder.sample_rate)
        steady = drift_controls(request.drift_control, plan.stages, windows)
        given: list[Handover] = []
        for index in range(windows.count):
            noise = NOISE_ORDERS[request.noise_order](window_seed(request.seed, index))
            start_time = index * windows.advance / plan.canvas.frame_rate
            inputs = self._inputs(request, plan, contexts, noise, progress, given, start_time)
            latents = [
                replace(pair, video=correct(pair.video)) if pair.video is not None else pair
                for correct, pair in zip(steady, self._runner.run(plan, inputs), strict=True)
            ]
            pixels, waveform = self._decode(latents[-1], progress)
            if not joiner.is_last:
                given = [
                    hand_over(pair, pixels, stage, windows, self.video_vae, self.components.audio_geometry)
                    for pair, stage in zip(latents, plan.stages, strict=True)
                ]
            progress.finish_window()
            yield joiner.add(plan.canvas.cut(pixels), waveform)

    def _inputs(
        self,
        request: GenerationRequest,
        plan: Plan,
        contexts: Contexts,
        noise: NoiseSource,
        on_progress: OnProgress | None,
        given: Sequence[Handover] = (),
        start_time: Fraction = Fraction(0),
    ) -> Inputs:
        """Gather what a run needs.

        Args:
            given: What a window takes over from the one before, per stage.
            start_time: Seconds from the beginning of a long clip to this window.
        """

        def states(index: int) -> AV[StreamState]:
            setting = Setting(
                request=request,
                grid=plan.stages[index].grid,
                audio_geometry=self.components.audio_geometry,
                num_audio_tokens=plan.audio_tokens,
                stage=index + 1,
                start=start_time,
            )
            # A later window has the prompt alone: pictures and the like belong to the beginning.
            return MODES[mode_of(request) if start_time == 0 else "text_to_audio_video"](setting)

        def denoiser(streams: AV[StreamState], guidance: GuidancePlan) -> TransformerDenoiser:
            return TransformerDenoiser(self.transformer, streams, contexts, guidance)

        loras = self._loras(request, plan)

        def around(stage: int) -> AbstractContextManager[None]:
            return loras_in_force(
                self.transformer, loras, request.lora_mode, stage=stage, on_progress=on_progress
            )

        return Inputs(
            states=states,
            denoiser=denoiser,
            noise=noise,
            on_progress=on_progress,
            around=around,
            given=given,
        )

    def _decode(self, latents: AV[Tensor], on_progress: OnProgress | None) -> tuple[Tensor, Tensor]:
        """Decode both streams to what is seen and heard, not cut yet."""
        assert latents.video is not None
        assert latents.audio is not None
        pixels = decode_video(self.video_vae, latents.video, on_progress)
        return pixels, decode_audio(self.audio_vae, self.vocoder, latents.audio, on_progress)

    def _loras(self, request: GenerationRequest, plan: Plan) -> tuple[ChosenLora, ...]:
        checkpoint, num_stages = self.components.checkpoint, len(plan.stages)
        return choose_loras(request.loras, self.transformer, checkpoint, num_stages=num_stages)

    def _encode(self, request: GenerationRequest, plan: Plan, on_progress: OnProgress | None) -> Contexts:
        """Encode what the passes attend to; a prompt that was met before is not encoded again."""
        prompts = [request.prompt]
        if plan.needs_negative_prompt:
            prompts.append(self._negative_prompt(request))
        progress = StageProgress(on_progress)
        for done, prompt in enumerate(prompts):
            progress("encode_prompt", done, len(prompts))
            if prompt not in self._contexts:
                if len(self._contexts) >= MAX_KEPT_CONTEXTS:
                    self._contexts.pop(next(iter(self._contexts)))
                self._contexts[prompt] = self.text.encode([prompt])
        progress("encode_prompt", len(prompts), len(prompts))
        encoded = [self._contexts[prompt] for prompt in prompts]
        return Contexts(prompt=encoded[0], negative=encoded[1] if len(encoded) > 1 else None)

    def _negative_prompt(self, request: GenerationRequest) -> str:
        if request.negative_prompt is not None:
            return request.negative_prompt
        return "" if self.components.generation.name == EMBEDDED else NEGATIVE_PROMPT

    def _check_blocks(self, stage: Stage) -> None:
        """Refuse guidance that perturbs blocks which this model does not have."""
        last = self.transformer.config.num_layers - 1
        blocks = stage.recipe.guidance.blocks
        for name, given in (("stg_blocks", blocks.video), ("audio_stg_blocks", blocks.audio)):
            for block in sorted(given or ()):
                if block > last:
                    raise RequestError(f"{name}: block {block} does not exist; this model's are 0 to {last}")

    def _check_length(self, prompt: str) -> None:
        """Refuse a prompt of which the model would read only the beginning."""
        limit, count = self.text.tokenizer.max_length, len(self.text.tokenizer.ids(prompt))
        if count > limit:
            words = len(prompt.split())
            raise RequestError(
                f"a prompt of {words} words has {count} tokens; this model reads {limit}, "
                f"about {max(words * limit // count, 1)} words"
            )


def _request(prompt: str | GenerationRequest, fields: dict[str, Any]) -> GenerationRequest:
    if isinstance(prompt, str):
        return GenerationRequest.of({"prompt": prompt, **fields})
    return GenerationRequest.of({**prompt.to_dict(), **fields}) if fields else prompt


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise RequestError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]
