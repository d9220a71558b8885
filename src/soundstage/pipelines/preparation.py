"""What a request comes to on a model, before anything is computed: its mode, its plan, its limits."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.pipelines.given import EDITS, mode_of
from soundstage.pipelines.loras import ChosenLora
from soundstage.pipelines.modes.mode import BOTH, Mode, Model
from soundstage.pipelines.modes.pictures import check_moments
from soundstage.pipelines.modes.registry import mode_for
from soundstage.pipelines.modes.sounds import voice_notes
from soundstage.pipelines.plan import Basis, Plan
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.settle import settle
from soundstage.pipelines.wording import check_spans

FROM_TEXT = ("text_to_audio_video", "image_to_audio_video", "reference_to_audio_video")
ENDLESS = 2**31  # frames; a window into which every clip fits


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that can be run."""

    request: GenerationRequest
    mode: Mode
    plan: Plan
    loras: tuple[ChosenLora, ...] = ()
    num_clips: int = 1  # that are made together
    rows_at_once: Mapping[str, int] = field(default_factory=dict)  # by stage, what the plan has room for

    @property
    def start(self) -> Fraction:
        """Seconds of the result at which what is generated begins."""
        return self.mode.first_frame / self.plan.canvas.frame_rate

    @property
    def given(self) -> AV[bool]:
        """Whether each stream is given whole; None for one that is absent."""
        request, generates = self.request, self.mode.generates
        picture = None if request.no_video else "video" not in generates
        sound = None if request.no_audio == "skip" else "audio" not in generates and not request.no_audio
        return AV(picture, sound)


def prepare(
    request: GenerationRequest,
    basis: Basis,
    plan_of: Callable[[GenerationRequest, Basis], Plan] | None = None,
) -> Prepared:
    """Find the mode of a request and plan the clip that it asks for.

    Args:
        plan_of: Makes the plan of a plain clip; `settle` without one.

    Raises:
        RequestError: Values do not go together, or not with this model.
        MediaError: What is given cannot be read.
        CheckpointError: A second stage needs an upsampler that is not there.
    """
    model = Model(
        defaults=basis.defaults,
        geometry=basis.geometry,
        image_crf=basis.generation.image_crf,
        image_scaling=basis.generation.image_scaling,
    )
    mode = mode_for(request, model)
    plain = mode.request
    if not comes_in_windows(request):
        _refuse_windows(request)
        plain = replace(plain, window=ENDLESS)
    plan = (plan_of or settle)(plain, basis)
    if "audio" in mode.generates:
        plan = replace(plan, notes=(*plan.notes, *voice_notes(request, plan.canvas)))
    prepared = Prepared(request=request, mode=mode, plan=plan)
    _check_agreement(prepared)
    return prepared


def comes_in_windows(request: GenerationRequest) -> bool:
    """Tell whether a long clip of this request can be made window by window."""
    if request.reference_video or request.complete_audio:
        return False
    return mode_of(request) not in EDITS.values()


def is_streamed(prepared: Prepared) -> bool:
    """Tell whether the result is a new clip of picture and sound, which can be written while it is made."""
    request = prepared.request
    if mode_of(request) == "audio_to_video":
        return not request.complete_audio
    return prepared.mode.generates == BOTH and mode_of(request) in FROM_TEXT


def comes_in_parts(prepared: Prepared) -> bool:
    """Tell whether a clip is made part by part: in windows, or decoded so for want of anything given."""
    in_windows = prepared.plan.canvas.windows is not None
    return is_streamed(prepared) and (in_windows or mode_of(prepared.request) in FROM_TEXT)


def check_attention(prepared: Prepared) -> None:
    """Refuse maps of what picture and sound attend to in each other where there is no such clip.

    Raises:
        RequestError: A stream is absent, or the clip comes in windows.
    """
    if prepared.plan.canvas.windows is not None:
        raise RequestError(
            "attention maps are of a clip that is generated at once, and this one comes in windows; "
            f"window={prepared.plan.canvas.num_frames} makes it at once"
        )
    if None in (prepared.given.video, prepared.given.audio):
        raise RequestError("attention maps show how picture and sound attend to each other; one is absent")


def check_blocks(plan: Plan, basis: Basis) -> None:
    """Refuse guidance that perturbs blocks which a model does not have.

    Raises:
        RequestError: A stage's does.
    """
    last = math.inf if basis.num_blocks is None else basis.num_blocks - 1
    for stage in plan.stages:
        blocks = stage.recipe.guidance.blocks
        for name, given in (("stg_blocks", blocks.video), ("audio_stg_blocks", blocks.audio)):
            for block in sorted(given or ()):
                if block > last:
                    raise RequestError(f"{name}: block {block} does not exist; this model's are 0 to {last}")


def check_together(requests: Sequence[GenerationRequest]) -> None:
    """Refuse requests that cannot be one batch.

    Raises:
        RequestError: They differ in more than prompt and seed, or want what is made one at a time.
    """
    if not requests:
        raise RequestError("there is no request; give at least one")
    first = requests[0]
    for request in requests:
        other = replace(request, prompt=first.prompt, seed=first.seed)
        if other != first:
            raise RequestError("clips that are made together differ in prompt and seed only")
    if mode_of(first) != "text_to_audio_video" or first.prompt_at or first.enhance:
        raise RequestError("only clips from one prompt each, and nothing else, are made together")
    if first.noise_order != "streams":
        raise RequestError(f"noise_order={first.noise_order!r} is that of one clip; use 'streams'")


def _refuse_windows(request: GenerationRequest) -> None:
    for name in ("window", "overlap", "drift_control"):
        if getattr(request, name):
            given = next((n for n in ("reference_video", "complete_audio") if getattr(request, n)), None)
            raise RequestError(
                f"{name}={getattr(request, name):g} is about long clips that come in windows; "
                f"{given or mode_of(request)} is generated at once"
            )


def _refuse_alone(request: GenerationRequest) -> None:
    """Refuse what is about how windows follow each other where there is one."""
    for name in ("overlap", "drift_control"):
        if getattr(request, name):
            raise RequestError(
                f"{name}={getattr(request, name):g} is about long clips that come in windows; "
                "this one is made at once"
            )


def _check_agreement(prepared: Prepared) -> None:
    request, plan = prepared.request, prepared.plan
    check_moments(request, prepared.mode.timeline(plan.canvas), plan.canvas.frame_rate)
    if len(plan.stages) > 1 and "video" not in prepared.mode.generates:
        raise RequestError(
            f"plan {plan.name!r} enlarges the picture that the first stage made, and {mode_of(request)} "
            "makes none; use one_stage"
        )
    if request.drift_control and "video" not in prepared.mode.generates:
        raise RequestError(
            f"drift_control={request.drift_control:g} is about colours; {mode_of(request)} makes no picture"
        )
    if plan.canvas.windows is None and comes_in_windows(request):
        _refuse_alone(request)
    length = plan.canvas.num_frames / plan.canvas.frame_rate
    check_spans(request, prepared.start, prepared.start + length)
