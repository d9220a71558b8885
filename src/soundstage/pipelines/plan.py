"""A request and a checkpoint's defaults become a plan: sizes, and how to denoise each stage, as data.

Whatever can be decided before anything is computed is decided here, so that a bad request fails at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from jaxtyping import Float
from torch import Tensor

from soundstage.checkpoints import generation
from soundstage.checkpoints.generation import SamplingDefaults
from soundstage.core.geometry import VideoGeometry, num_audio_samples, parse_frame_rate
from soundstage.core.types import AV, Sigmas
from soundstage.diffusion.denoise import Recipe
from soundstage.diffusion.guidance import (
    GUIDANCE,
    CrossModalGuidance,
    GuidancePlan,
    SpatioTemporalGuidance,
    StreamGuidance,
)
from soundstage.diffusion.samplers import SAMPLERS
from soundstage.diffusion.schedules import FIXED_STEPS, explicit, make_sigmas
from soundstage.pipelines.conditions import VideoGrid
from soundstage.pipelines.request import LONGEST, GenerationRequest

ClipPixels = Float[Tensor, "3 frames height width"]
CutPixels = Float[Tensor, "3 cut_frames cut_height cut_width"]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The clip that was asked for, and the slightly larger one that the model's grid makes of it."""

    num_frames: int
    height: int
    width: int
    frame_rate: Fraction
    grid: VideoGrid  # of what is generated
    notes: tuple[str, ...] = ()  # what was done otherwise than asked, for people

    @classmethod
    def of(cls, request: GenerationRequest, defaults: SamplingDefaults, geometry: VideoGeometry) -> "Canvas":
        """Settle size, length and rate.

        Raises:
            RequestError: They do not fit the grid and the request wants that to be an error.
        """
        rate = parse_frame_rate(request.frame_rate or defaults.frame_rate)
        frames = request.frames_at(rate) or defaults.num_frames
        height, width = request.height or defaults.height, request.width or defaults.width
        if request.snap == "error":
            geometry.check_num_frames(frames)
            geometry.check_size(height, width)
        padded = (geometry.fit_num_frames(frames), *geometry.fit_size(height, width))
        return cls(
            num_frames=frames,
            height=height,
            width=width,
            frame_rate=rate,
            grid=VideoGrid.of(geometry, *padded, rate),
            notes=tuple(_notes((frames, height, width), padded, rate, geometry)),
        )

    @property
    def padded_frames(self) -> int:
        """Frames that are generated."""
        return self.grid.geometry.num_pixel_frames(self.grid.num_latent_frames)

    def num_samples(self, sample_rate: int) -> int:
        """Samples of a sound track exactly as long as the clip."""
        return num_audio_samples(self.num_frames, self.frame_rate, sample_rate)

    def cut(self, pixels: ClipPixels) -> CutPixels:
        """Cut the clip that was asked for out of the generated one: the middle of its first frames."""
        top = (pixels.shape[2] - self.height) // 2
        left = (pixels.shape[3] - self.width) // 2
        return pixels[:, : self.num_frames, top : top + self.height, left : left + self.width]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run of the sampler: on which grid, and how."""

    grid: VideoGrid
    recipe: Recipe

    @property
    def noise_scale(self) -> float:
        """How much noise the stage starts with: all of it, or what its first level says."""
        return float(self.recipe.sigmas[0])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole generation: one stage or several, each starting from the one before."""

    canvas: Canvas
    stages: tuple[Stage, ...]

    @property
    def needs_negative_prompt(self) -> bool:
        """Whether any stage compares with the negative prompt."""
        return any("uncond" in stage.recipe.guidance.passes() for stage in self.stages)


def one_stage(request: GenerationRequest, defaults: SamplingDefaults, geometry: VideoGeometry) -> Plan:
    """Plan a generation at full size in a single stage.

    Raises:
        RequestError: Values do not go together, or not with this checkpoint.
    """
    canvas = Canvas.of(request, defaults, geometry)
    recipe = Recipe(
        sigmas=_sigmas(request, defaults, canvas.grid.num_tokens),
        sampler=SAMPLERS[request.sampler or defaults.sampler],
        guidance=_guidance(request, defaults),
    )
    return Plan(canvas=canvas, stages=(Stage(grid=canvas.grid, recipe=recipe),))


def _sigmas(request: GenerationRequest, defaults: SamplingDefaults, num_tokens: int) -> Sigmas:
    if request.sigmas is not None:
        return explicit(request.sigmas)
    name = request.schedule or defaults.schedule
    num_steps = request.num_inference_steps or FIXED_STEPS.get(name) or defaults.num_inference_steps
    return make_sigmas(name, num_steps, shift=request.shift, num_tokens=num_tokens)


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
            GUIDANCE[request.guidance](scale=scale("guidance_scale")),
            SpatioTemporalGuidance(
                scale=scale("stg_scale"), blocks=blocks if asked_blocks is None else asked_blocks
            ),
            CrossModalGuidance(scale=scale("modality_scale")),
        ),
        rescale=scale("guidance_rescale"),
        interval=request.guidance_interval,
    )


def _notes(
    asked: tuple[int, int, int], padded: tuple[int, int, int], rate: Fraction, geometry: VideoGeometry
) -> Iterator[str]:
    frames, height, width = asked
    if padded[1:] != (height, width):
        yield (
            f"{width}x{height} does not fit the grid of {geometry.token_size} pixels: generated at "
            f"{padded[2]}x{padded[1]}, then cut to the middle"
        )
    if padded[0] != frames:
        yield (
            f"{frames} frames are not {geometry.temporal_factor} k + 1: generated {padded[0]}, "
            f"then cut to the first {frames}"
        )
    if frames / rate > LONGEST:
        yield f"{float(frames / rate):.1f} s is beyond the {LONGEST:g} s that the models were trained for"
