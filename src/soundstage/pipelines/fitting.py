"""Place a model for a request; if it cannot be, find the nearest requests and formats that can."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.checkpoints.releases import RELEASES
from soundstage.core.errors import RequestError, ResourceError
from soundstage.core.geometry import VideoGeometry
from soundstage.pipelines.forecast import TRANSFORMER, Given, Setup, forecast
from soundstage.pipelines.given import references_of
from soundstage.pipelines.loading import audio_geometry, video_geometry
from soundstage.pipelines.lora_option import LoraOption
from soundstage.pipelines.loras import (
    branches_of,
    check_stage,
    choose_loras,
    is_missing_release,
    lora_notes,
    text_branches_of,
    with_reference_factors,
)
from soundstage.pipelines.placing import QuantizeName
from soundstage.pipelines.plan import PLANS, Basis, Plan, make_plan
from soundstage.pipelines.preparation import Prepared, prepare
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.upsampling import TRAIN_FREE, TRAIN_FREE_SCALE, UpsamplerChoice, choose_upsampler
from soundstage.runtime.planning import DevicePlan, Part, PlannedPhase, Task, plan_device

SMALLER: tuple[QuantizeName, ...] = ("fp8", "int4")  # formats that are proposed
BLENDED = "frames are decoded in tiles that are blended where they overlap, for want of memory"
SCALES = (0.75, 0.5, 0.35, 0.25)  # sizes that are proposed


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A request with where everything will be."""

    plan: Plan
    device: DevicePlan
    parts: Mapping[str, Part]
    keep_texts: bool = False  # there is room to keep what the blocks read of the texts

    @property
    def rows_at_once(self) -> dict[str, int]:
        """How many passes of a step a layer takes together, by stage."""
        return rows_at_once(self.plan, self.device.phases)


def rows_at_once(plan: Plan, phases: Sequence[PlannedPhase]) -> dict[str, int]:
    """Read off planned phases how many passes of a step a layer takes together, by stage."""
    denoising = (planned.rows_at_once for planned in phases if planned.phase.parts == (TRANSFORMER,))
    return dict(zip((stage.name for stage in plan.stages), denoising, strict=True))


def fit(setup: Setup, request: GenerationRequest, budget: int, *, num_clips: int = 1) -> Fitted:
    """Plan a clip and place the model for it; what is given decides as it does when the clip is made.

    Args:
        num_clips: Clips that are made together.

    Raises:
        RequestError: The request does not go with the model.
        CheckpointError: A LoRA does not; of a released one that is not here nothing is known.
        MediaError: What is given cannot be read.
        ResourceError: It does not fit; says what the nearest would be that does.
    """
    basis = Basis.of(setup.checkpoint, video_geometry(setup.checkpoint), audio_geometry(setup.checkpoint))
    prepared = sketched(setup.checkpoint, request, basis, num_clips=num_clips)
    try:
        return _place(setup, prepared, budget)
    except ResourceError as error:
        cures = list(_cures(setup, prepared, basis, budget))
        hint = f"; what would fit: {', or '.join(cures)}" if cures else "; nothing smaller was found to fit"
        raise ResourceError(f"{error}{hint}") from error


def sketched(
    checkpoint: Checkpoint, request: GenerationRequest, basis: Basis, *, num_clips: int = 1
) -> Prepared:
    """Prepare a clip of a model of which nothing but headers need be here.

    Raises:
        RequestError: The request does not go with the model.
        MediaError: What is given cannot be read.
        CheckpointError: A LoRA does not go with the model.
    """
    options = [LoraOption.parse(text) for text in request.loras]
    loras = choose_loras(request.loras, checkpoint, skip=is_missing_release)
    prepared = prepare(with_reference_factors(request, loras), basis, _settle)
    for option in options:
        check_stage(option, len(prepared.plan.stages))
    missing = [option.path for option in options if is_missing_release(option.path)]
    notes = (f"{path} is not here; what it takes is not counted" for path in missing)
    plan = replace(prepared.plan, notes=(*prepared.plan.notes, *lora_notes(loras, checkpoint), *notes))
    return replace(prepared, plan=plan, loras=loras, num_clips=num_clips)


def given_by(prepared: Prepared, itemsize: int) -> Given:
    """Tell what of a prepared clip is given, and what it has beside the model's weights.

    Args:
        itemsize: Bytes per number of these.
    """
    request, grid = prepared.request, prepared.plan.canvas.grid
    references = references_of(request)
    moving = request.video or references or prepared.plan.canvas.windows
    pictures = grid.geometry.num_pixel_frames(grid.latent_shape[0]) if moving else int(bool(request.image))
    whole = prepared.given
    smaller = (request.reference_downscale_factor or 1) ** 2 * (request.reference_temporal_factor or 1)
    return Given(
        whole=whole,
        num_frames=0 if whole.video is None else pictures,
        has_sound=whole.audio is not None and bool(request.audio or request.reference_audio or request.video),
        followed=len(references) / smaller,
        has_step_cache=request.step_cache > 0,
        num_clips=prepared.num_clips,
        branches=branches_of(prepared.loras, request.lora_mode, itemsize),
        text_branches=text_branches_of(prepared.loras, request.lora_mode, itemsize),
    )


def _place(setup: Setup, prepared: Prepared, budget: int) -> Fitted:
    given = given_by(prepared, setup.dtype.itemsize)
    task = forecast(setup, prepared.plan, given)
    device = _planned(setup, task, budget)
    keeps = False
    if not setup.transformer.prompt_adaln:  # the same over all steps: kept if that displaces nothing
        more = forecast(replace(setup, keep_texts=True), prepared.plan, given)
        try:
            keeping = _planned(setup, more, budget)
        except ResourceError:
            keeping = device
        keeps = keeping is not device and (keeping.kind, keeping.streamed) == (device.kind, device.streamed)
        device = keeping if keeps else device
    return Fitted(plan=_noted(prepared.plan, device), device=device, parts=task.parts, keep_texts=keeps)


def _planned(setup: Setup, task: Task, budget: int) -> DevicePlan:
    return plan_device(task, budget, setup.placing.offload, host_budget=setup.host_budget)


def _noted(plan: Plan, device: DevicePlan) -> Plan:
    if all(planned.is_exact for planned in device.phases):
        return plan
    return replace(plan, notes=(*plan.notes, BLENDED))


def _settle(request: GenerationRequest, basis: Basis) -> Plan:
    """Plan a request of which nothing but the headers is here; the released upsampler need not be."""
    first = make_plan(request, basis)
    if len(PLANS[first.name]) == 1:
        return first
    given = request.upsampler
    released = [r.name for r in RELEASES.values() if r.kind == "upsampler" and "spatial" in r.name]
    if given is None or (given in released and given not in TRAIN_FREE):
        double = UpsamplerChoice(name=given or "the released upsampler", scale=_scale(given))
    else:
        double = choose_upsampler(given, basis.generation, basis.geometry.channels)
    return make_plan(request, basis, upsampler=double)


def _scale(name: str | None) -> Fraction:
    return Fraction(3, 2) if name is not None and "x1.5" in name else Fraction(TRAIN_FREE_SCALE)


def _cures(setup: Setup, prepared: Prepared, basis: Basis, budget: int) -> Iterator[str]:
    """Yield what to change, one thing at a time."""
    request, plan = prepared.request, prepared.plan

    def fits(setup: Setup, **changes: Any) -> bool:
        try:
            changed = prepare(replace(request, **changes), basis, _settle) if changes else prepared
            _place(setup, replace(changed, loras=prepared.loras, num_clips=prepared.num_clips), budget)
        except (ResourceError, RequestError):
            return False
        return True

    if setup.placing.offload in ("none", "auto"):
        streamed = replace(setup, placing=replace(setup.placing, offload="stream"))
        if fits(streamed):
            yield "--offload stream"
    for name in SMALLER:
        smaller = replace(setup, placing=replace(setup.placing, quantize=name))
        if setup.placing.quantize != name and fits(smaller):
            yield f"--quantize {name}"
            break
    if request.video is not None:  # which decides length and size
        return
    frames = _most_frames(
        plan.canvas.num_frames, basis.geometry, lambda n: fits(setup, num_frames=n, duration=None)
    )
    if frames is not None:
        yield f"--duration {float(frames / plan.canvas.frame_rate):.2f} ({frames} frames)"
    step = basis.geometry.spatial_factor * basis.geometry.patch_size
    for scale in SCALES:
        width, height = (
            max(step, int(n * scale) // step * step) for n in (plan.canvas.width, plan.canvas.height)
        )
        if fits(setup, width=width, height=height):
            yield f"--size {width}x{height}"
            break


def _most_frames(num_frames: int, geometry: VideoGeometry, fits: Callable[[int], bool]) -> int | None:
    """Find the largest shorter length that fits, by halving."""
    step = geometry.temporal_factor
    low, high = 0, (num_frames - 1) // step  # in steps; `low` fits unless it is 0, `high` does not
    if not fits(1 + step):
        return None
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(1 + middle * step) else (low, middle)
    return 1 + low * step
