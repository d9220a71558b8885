"""A request and what is known of a model become a plan: sizes, and how to denoise each stage, as data.

Whatever can be decided before anything is computed is decided here, so that a bad request fails at once.

| plan | first stage | second stage |
|---|---|---|
| `one_stage` | the model's own way; that of distilled models where a LoRA makes it one | |
| `two_stage` | the same, smaller | enlarged, then refined |
| `hq` | half the steps, of second order; noisier for more tokens | enlarged, then refined, likewise |
| `distilled` | eight fixed steps without guidance | enlarged, then refined |

A distilled model, or one with a LoRA that makes it one, refines in three fixed steps without guidance.
Another one goes through its own schedule from the refining level on, guided.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from soundstage.checkpoints import generation
from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.checkpoints.generation import Generation, SamplingDefaults
from soundstage.checkpoints.releases import RELEASES
from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import AV, Sigmas
from soundstage.diffusion.denoise import Recipe
from soundstage.diffusion.guidance import (
    GUIDANCE,
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    CrossModalGuidance,
    GuidancePlan,
    SpatioTemporalGuidance,
    StreamGuidance,
    When,
)
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.diffusion.schedules import FIXED_STEPS, REFINE, begin_at, distilled, explicit, make_sigmas
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.conditions import VideoGrid
from soundstage.pipelines.lora_option import LoraOption
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.upsampling import UpsamplerChoice

REFINE_STRENGTH = REFINE[0]  # the level at which the released models' second stage begins


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What planning needs to know of a model, none of it its weights."""

    generation: Generation
    variant: str  # "dev" or "distilled", as the file's name says
    geometry: VideoGeometry
    audio_geometry: AudioGeometry
    num_blocks: int | None = None  # of the transformer; None where the header does not say

    @classmethod
    def of(cls, checkpoint: Checkpoint, geometry: VideoGeometry, audio_geometry: AudioGeometry) -> "Basis":
        """Read it off a checkpoint's headers."""
        return cls(
            generation=checkpoint.generation,
            variant=checkpoint.variant,
            geometry=geometry,
            audio_geometry=audio_geometry,
            num_blocks=checkpoint.config.get("transformer", {}).get("num_layers"),
        )

    @property
    def defaults(self) -> SamplingDefaults:
        """How the model samples when the request does not say."""
        presets = self.generation.presets
        return presets.get(self.variant, presets["dev"])


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage of a plan, before model and request are known."""

    name: Literal["generate", "refine"]
    preset: Literal["own", "hq", "distilled"] = "own"  # whose steps, schedule and guidance it has
    sampler: str | None = None  # in place of that of the preset


PLANS: dict[str, tuple[StageSpec, ...]] = {
    "one_stage": (StageSpec(name="generate"),),
    "two_stage": (StageSpec(name="generate"), StageSpec(name="refine")),
    "hq": (StageSpec(name="generate", preset="hq"), StageSpec(name="refine", sampler="res_2s")),
    "distilled": (StageSpec(name="generate", preset="distilled"), StageSpec(name="refine", sampler="euler")),
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of the sampler: on which grid, and how."""

    name: str
    grid: VideoGrid
    recipe: Recipe
    sampler: str  # its name
    keeps_sound: bool = False  # the sound of the stage before is given, not sampled again

    @property
    def refines(self) -> bool:
        """Whether it starts from the enlarged latents of the stage before."""
        return self.name == "refine"

    @property
    def noise_scale(self) -> float:
        """How much noise the stage starts with: all of it, or what its first level says."""
        return float(self.recipe.sigmas[0])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole generation: one stage or several, each starting from the one before."""

    name: str
    canvas: Canvas
    stages: tuple[Stage, ...]
    upsampler: UpsamplerChoice | None = None  # between the stages
    audio_tokens: int  # of what is generated at once, before modes give or append any
    notes: tuple[str, ...] = ()  # what people should know before it runs

    @property
    def needs_negative_prompt(self) -> bool:
        """Whether any stage compares with the negative prompt."""
        return any("uncond" in stage.recipe.guidance.needs() for stage in self.stages)


def plan_name(request: GenerationRequest, variant: str) -> str:
    """Tell the plan of a request: what it asks for, or what suits an upsampler that it gives."""
    if request.plan is not None:
        return request.plan
    if request.upsampler is None:
        return "one_stage"
    return "distilled" if variant == "distilled" else "two_stage"


def make_plan(request: GenerationRequest, basis: Basis, *, upsampler: UpsamplerChoice | None = None) -> Plan:
    """Plan a generation.

    Args:
        upsampler: What enlarges between the stages; without one, the plan has the first stage alone.

    Raises:
        RequestError: Values do not go together, or not with this model.
    """
    name = plan_name(request, basis.variant)
    specs = PLANS[name]
    defaults = [_preset(spec, request, basis, stage) for stage, spec in enumerate(specs, start=1)]
    if len(specs) == 1 and specs[0].preset == "own" and acts_distilled(request, basis, 1):  # by a LoRA, too
        defaults = [_distilled_by_lora(request, basis)]
    scale = Fraction(1) if upsampler is None else upsampler.scale
    canvas = Canvas.of(request, defaults[0], basis.geometry, scale=scale, audio=basis.audio_geometry)
    tokens = basis.audio_geometry.num_tokens(canvas.padded_frames, canvas.frame_rate)
    first = _first_stage(request, specs[0], defaults[0], canvas)
    notes = (*canvas.notes, *_guidance_notes(request, basis, first))
    if len(specs) == 1 or upsampler is None:
        return Plan(name=name, canvas=canvas, stages=(first,), audio_tokens=tokens, notes=notes)
    is_distilled = acts_distilled(request, basis, 2)
    second = _refining_stage(request, specs[1], first, defaults[1], canvas, is_distilled=is_distilled)
    about = (upsampler.note, "" if is_distilled else _undistilled_note(second, basis))
    return Plan(
        name=name,
        canvas=canvas,
        stages=(first, second),
        upsampler=upsampler,
        audio_tokens=tokens,
        notes=(*notes, *filter(None, about)),
    )


def acts_distilled(request: GenerationRequest, basis: Basis, stage: int) -> bool:
    """Tell whether a stage, counted from 1, is distilled: by the name of the model's file, or of a LoRA."""
    if basis.variant == "distilled":
        return True
    options = [LoraOption.parse(text) for text in request.loras]
    acting = [option for option in options if option.acts_in(stage) and option.strength]
    return any("distilled" in Path(option.path).name.lower() for option in acting)


def distilled_lora(basis: Basis) -> str | None:
    """Name the LoRA that makes a model of this generation a distilled one."""
    names = [
        release.name
        for release in RELEASES.values()
        if release.kind == "LoRA" and release.generation == basis.generation.name
    ]
    return next((name for name in names if "distilled" in name), None)


def _distilled_by_lora(request: GenerationRequest, basis: Basis) -> SamplingDefaults:
    """Take the distilled preset; for another number of steps than its levels allow, with the own schedule."""
    fewer = basis.generation.presets.get("distilled", basis.defaults)
    if request.num_inference_steps in (None, fewer.num_inference_steps):
        return fewer
    return replace(fewer, schedule=basis.defaults.schedule)


def _preset(spec: StageSpec, request: GenerationRequest, basis: Basis, stage: int) -> SamplingDefaults:
    presets, own = basis.generation.presets, basis.defaults
    if spec.preset == "own":
        return own
    if spec.preset == "hq":
        if basis.variant == "distilled":
            raise RequestError("plan 'hq' guides a model, and a distilled one is not to be; use 'distilled'")
        return presets.get("hq") or _halved(own)
    if "distilled" in presets and acts_distilled(request, basis, stage):
        return presets["distilled"]
    lora = distilled_lora(basis)
    cure = f"add --lora {lora}, or name a distilled checkpoint" if lora else "use one_stage or two_stage"
    raise RequestError(
        f"plan 'distilled' needs a distilled model, which {basis.generation.title} is not; {cure}"
    )


def _halved(own: SamplingDefaults) -> SamplingDefaults:
    """Derive the second-order way of a model that comes without: as many evaluations, so half the steps."""
    video, audio = (replace(stream, stg_scale=0.0) for stream in (own.video, own.audio))
    steps = math.ceil(own.num_inference_steps / 2)
    return replace(own, sampler="res_2s", num_inference_steps=steps, video=video, audio=audio, stg_blocks=())


def _first_stage(
    request: GenerationRequest, spec: StageSpec, defaults: SamplingDefaults, canvas: Canvas
) -> Stage:
    sampler = request.sampler or spec.sampler or defaults.sampler
    if request.sampler is None and sampler == "euler_ancestral" and _has_references(request):
        sampler = "euler"  # references are followed, and dubbed, without new noise on the way
    shift = request.shift
    if shift is None:
        shift = "tokens" if spec.preset == "hq" else "official"
    return Stage(
        name="generate",
        grid=canvas.first_grid,
        recipe=Recipe(
            sigmas=_sigmas(request, defaults, shift, canvas.first_grid.num_tokens),
            sampler=SAMPLERS[sampler],
            guidance=_guidance(request, defaults),
        ),
        sampler=sampler,
    )


def _refining_stage(
    request: GenerationRequest,
    spec: StageSpec,
    first: Stage,
    defaults: SamplingDefaults,
    canvas: Canvas,
    *,
    is_distilled: bool,
) -> Stage:
    """Start at the refining level: on the fixed levels without guidance, or on the model's own with it."""
    sampler = spec.sampler or ("euler" if is_distilled else request.sampler or defaults.sampler)
    strength = REFINE_STRENGTH if request.refine_strength is None else request.refine_strength
    if is_distilled:
        levels, guidance = distilled(), GuidancePlan()
    else:
        levels, guidance = first.recipe.sigmas, first.recipe.guidance
    return Stage(
        name="refine",
        grid=canvas.grid,
        recipe=Recipe(sigmas=begin_at(levels, strength), sampler=SAMPLERS[sampler], guidance=guidance),
        sampler=sampler,
        keeps_sound=request.audio_from == "stage1",
    )


def _has_references(request: GenerationRequest) -> bool:
    return bool(request.reference_video) or request.reference_audio is not None


def _guidance_notes(request: GenerationRequest, basis: Basis, first: Stage) -> list[str]:
    """Say where guidance does not suit the model: it spoils what is distilled, and what is not lacks it."""
    is_distilled, is_guided = acts_distilled(request, basis, 1), bool(first.recipe.guidance.needs())
    if is_distilled and is_guided:
        return [
            "the model is distilled, and guidance overdoes what it does already; without, it is faster, too"
        ]
    if not is_distilled and not is_guided:
        lora = distilled_lora(basis)
        cure = f", or --lora {lora}" if lora else ""
        return [
            f"the model is not distilled: without guidance it follows the prompt poorly; leave it on{cure}"
        ]
    return []


def _undistilled_note(stage: Stage, basis: Basis) -> str:
    steps = len(stage.recipe.sigmas) - 1
    lora = distilled_lora(basis)
    cure = f"; with --lora {lora}@2 it takes 3 without guidance" if lora else ""
    return (
        f"the model is not distilled: the second stage takes {steps} guided steps of its own schedule{cure}"
    )


def _sigmas(
    request: GenerationRequest,
    defaults: SamplingDefaults,
    shift: Literal["official", "tokens"] | float,
    num_tokens: int,
) -> Sigmas:
    if request.sigmas is not None:
        return explicit(request.sigmas)
    name = request.schedule or defaults.schedule
    num_steps = request.num_inference_steps or FIXED_STEPS.get(name) or defaults.num_inference_steps
    return make_sigmas(name, num_steps, shift=shift, num_tokens=num_tokens)


def _guidance(request: GenerationRequest, defaults: SamplingDefaults) -> GuidancePlan:
    return GuidancePlan(
        streams=AV(
            _stream_guidance(request, "", defaults.video, defaults.stg_blocks),
            _stream_guidance(request, "audio_", defaults.audio, defaults.stg_blocks),
        )
    )


def _stream_guidance(
    request: GenerationRequest, prefix: str, defaults: generation.StreamGuidance, blocks: tuple[int, ...]
) -> StreamGuidance:
    def scale(name: str) -> float:
        asked: float | None = getattr(request, prefix + name)
        default: float = getattr(defaults, name)
        return default if asked is None else asked

    asked_blocks: tuple[int, ...] | None = getattr(request, prefix + "stg_blocks")
    return StreamGuidance(
        terms=(
            _towards_prompt(request, scale("guidance_scale"), _when(request, prefix, "guidance")),
            SpatioTemporalGuidance(
                scale=scale("stg_scale"),
                blocks=blocks if asked_blocks is None else asked_blocks,
                when=_when(request, prefix, "stg"),
            ),
            CrossModalGuidance(scale=scale("modality_scale"), when=_when(request, prefix, "modality")),
        ),
        rescale=scale("guidance_rescale"),
    )


def _towards_prompt(request: GenerationRequest, scale: float, when: When) -> ClassifierFreeGuidance:
    if request.guidance == "apg":
        threshold = request.apg_norm_threshold or 0.0
        return AdaptiveProjectedGuidance(
            scale=scale, when=when, eta=request.apg_eta, norm_threshold=threshold
        )
    return GUIDANCE[request.guidance](scale=scale, when=when)


def _when(request: GenerationRequest, prefix: str, term: str) -> When:
    """Settle when a term applies: as asked for it, for its stream's guidance, for the picture, for all."""
    names = (f"{prefix}{term}", f"{prefix}guidance", term, "guidance")
    values: Mapping[str, object] = vars(request)
    intervals: list[tuple[float, float]] = [values[f"{name}_interval"] for name in names]  # type: ignore[misc]
    every: list[int] = [values[f"{name}_every"] for name in names]  # type: ignore[misc]
    return When(
        interval=next(interval for interval in intervals if interval is not None),
        every=next(count for count in every if count is not None),
        between=request.guidance_between,
    )
