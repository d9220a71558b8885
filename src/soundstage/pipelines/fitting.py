"""Place a model for a request; if it cannot be, find the nearest requests and formats that can."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from soundstage.checkpoints.releases import RELEASES
from soundstage.core.errors import RequestError, ResourceError
from soundstage.core.geometry import VideoGeometry
from soundstage.core.types import AV
from soundstage.pipelines.forecast import Setup, forecast
from soundstage.pipelines.loading import audio_geometry, video_geometry
from soundstage.pipelines.placing import QuantizeName
from soundstage.pipelines.plan import PLANS, Basis, Plan, make_plan
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.upsampling import TRAIN_FREE, TRAIN_FREE_SCALE, UpsamplerChoice, choose_upsampler
from soundstage.runtime.planning import DevicePlan, Part, plan_device

SMALLER: tuple[QuantizeName, ...] = ("fp8", "int4")  # formats that are proposed
SCALES = (0.75, 0.5, 0.35, 0.25)  # sizes that are proposed


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A request with where everything will be."""

    plan: Plan
    device: DevicePlan
    parts: Mapping[str, Part]
    keep_texts: bool = False  # there is room to keep what the blocks read of the texts

    @property
    def largest(self) -> int:
        """The most that any phase needs beside weights."""
        return max(planned.phase.activations for planned in self.device.phases)


def fit(setup: Setup, request: GenerationRequest, budget: int) -> Fitted:
    """Plan a clip and place the model for it.

    Raises:
        RequestError: The request does not go with the model.
        ResourceError: It does not fit; says what the nearest would be that does.
    """
    basis = Basis.of(setup.checkpoint, video_geometry(setup.checkpoint), audio_geometry(setup.checkpoint))
    plan = _plan(request, basis)
    try:
        return _place(setup, plan, request, budget)
    except ResourceError as error:
        cures = list(_cures(setup, request, plan, basis, budget))
        hint = f"; what would fit: {', or '.join(cures)}" if cures else "; nothing smaller was found to fit"
        raise ResourceError(f"{error}{hint}") from error


def _place(setup: Setup, plan: Plan, request: GenerationRequest, budget: int) -> Fitted:
    given = AV(None if request.no_video else False, None if request.no_audio == "skip" else False)
    setup = replace(setup, budget=budget)
    task = forecast(setup, plan, given)
    device = plan_device(task, budget, setup.placing.offload)
    fitted = Fitted(plan=plan, device=device, parts=task.parts)
    if not setup.transformer.prompt_adaln:  # the same over all steps: kept if that displaces nothing
        more = forecast(replace(setup, keep_texts=True), plan, given)
        try:
            keeping = plan_device(more, budget, setup.placing.offload)
        except ResourceError:
            return fitted
        if (keeping.kind, keeping.streamed) == (device.kind, device.streamed):
            return replace(fitted, device=keeping, keep_texts=True)
    return fitted


def _plan(request: GenerationRequest, basis: Basis) -> Plan:
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


def _cures(setup: Setup, request: GenerationRequest, plan: Plan, basis: Basis, budget: int) -> Iterator[str]:
    """Yield what to change, one thing at a time."""

    def fits(setup: Setup, request: GenerationRequest) -> bool:
        try:
            _place(setup, _plan(request, basis), request, budget)
        except (ResourceError, RequestError):
            return False
        return True

    if setup.placing.offload in ("none", "auto"):
        streamed = replace(setup, placing=replace(setup.placing, offload="stream"))
        if fits(streamed, request):
            yield "--offload stream"
    for name in SMALLER:
        smaller = replace(setup, placing=replace(setup.placing, quantize=name))
        if setup.placing.quantize != name and fits(smaller, request):
            yield f"--quantize {name}"
            break
    frames = _most_frames(plan.canvas.num_frames, basis.geometry, lambda n: fits(setup, _lasting(request, n)))
    if frames is not None:
        yield f"--duration {float(frames / plan.canvas.frame_rate):.2f} ({frames} frames)"
    step = basis.geometry.spatial_factor * basis.geometry.patch_size
    for scale in SCALES:
        width, height = (
            max(step, int(n * scale) // step * step) for n in (plan.canvas.width, plan.canvas.height)
        )
        if fits(setup, replace(request, width=width, height=height)):
            yield f"--size {width}x{height}"
            break


def _lasting(request: GenerationRequest, num_frames: int) -> GenerationRequest:
    return replace(request, num_frames=num_frames, duration=None)


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
