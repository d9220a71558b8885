"""Settle a request for a model, with or without its weights, and show the plan to people and programs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.releases import resolve
from soundstage.core.types import AV
from soundstage.diffusion.rehearsal import Look, rehearse
from soundstage.pipelines.batching import said
from soundstage.pipelines.loading import audio_geometry, video_geometry
from soundstage.pipelines.plan import PLANS, Basis, Plan, Stage, make_plan
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.upsampling import choose_upsampler

GENERATED = AV(False, False)
_ORIGIN = {False: "generated", True: "given", None: "absent"}


def basis_of(model: str | Path) -> Basis:
    """Read what planning needs off a model's headers; no weights are read.

    Raises:
        CheckpointError: There is no such model, or its headers are damaged.
    """
    checkpoint = open_checkpoint(resolve(model))
    return Basis.of(checkpoint, video_geometry(checkpoint), audio_geometry(checkpoint))


def settle(request: GenerationRequest, basis: Basis) -> Plan:
    """Make the plan of a request, of one stage or several.

    Raises:
        RequestError: Values do not go together, or not with this model.
        CheckpointError: A second stage needs an upsampler that is not there; says which to get.
    """
    first = make_plan(request, basis)  # what is wrong with the request is said before what is missing
    if len(PLANS[first.name]) == 1:
        return first
    choice = choose_upsampler(request.upsampler, basis.generation, basis.geometry.channels)
    return make_plan(request, basis, upsampler=choice)


def describe(
    plan: Plan, given: AV[bool] = GENERATED, rows_at_once: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Write a plan as plain data: sizes, tokens, steps, noise levels, passes.

    Args:
        given: Whether each stream is given whole; None for one that is absent.
        rows_at_once: How many passes of a step go through a layer together, by stage, where that is known.
    """
    canvas, at_once = plan.canvas, rows_at_once or {}
    stages = [_describe_stage(plan, stage, given, at_once.get(stage.name)) for stage in plan.stages]
    return {
        "plan": plan.name,
        "width": canvas.width,
        "height": canvas.height,
        "num_frames": canvas.num_frames,
        "frame_rate": str(canvas.frame_rate),
        "seconds": round(float(canvas.num_frames / canvas.frame_rate), 3),
        "windows": None
        if canvas.windows is None
        else {
            "count": canvas.windows.count,
            "num_frames": canvas.windows.num_frames,
            "overlap": canvas.windows.overlap,
        },
        "stages": stages,
        "network_calls": canvas.num_windows * sum(stage["network_calls"] for stage in stages),
        "notes": list(plan.notes),
    }


def lines(description: dict[str, Any]) -> Iterator[str]:
    """Write a description for people."""
    d = description
    yield (
        f"plan {d['plan']}: {d['width']}x{d['height']}, {d['num_frames']} frames at {d['frame_rate']} fps, "
        f"{d['seconds']:g} s"
    )
    if d["windows"]:
        w = d["windows"]
        yield f"{w['count']} windows of {w['num_frames']} frames, {w['overlap']} shared; each:"
    for number, stage in enumerate(d["stages"], start=1):
        yield f"stage {number}, {stage['name']}: {stage['width']}x{stage['height']}"
        picture, sound = (
            stage[f"{kind}_tokens"] if stage[name] == "generated" else stage[name]
            for kind, name in (("video", "picture"), ("audio", "sound"))
        )
        yield f"  tokens   {picture} picture, {sound} sound"
        yield f"  sampler  {stage['sampler']}, {stage['num_inference_steps']} steps"
        yield f"  levels   {' '.join(f'{sigma:.4g}' for sigma in stage['sigmas'])}"
        passes = ", ".join(f"{count} {name}" for name, count in stage["passes"].items())
        yield f"  passes   {stage['network_calls']}: {passes}"
        if stage["rows_at_once"] is not None:
            yield f"  a step   {said(stage['passes_of_a_step'], 1, stage['rows_at_once'])}"
    yield f"network passes in all: {d['network_calls']}"
    yield from (f"note: {note}" for note in d["notes"])


def _describe_stage(plan: Plan, stage: Stage, given: AV[bool], rows_at_once: int | None) -> dict[str, Any]:
    is_given = AV(given.video, None if given.audio is None else given.audio or stage.keeps_sound)
    looks = looks_of(stage, is_given)
    passes = Counter(name for look in looks for name in look.passes)
    _, rows, columns = stage.grid.latent_shape
    factor = stage.grid.geometry.spatial_factor
    return {
        "name": stage.name,
        "width": columns * factor,
        "height": rows * factor,
        "video_tokens": stage.grid.num_tokens,
        "audio_tokens": plan.audio_tokens,
        "picture": _ORIGIN[is_given.video],
        "sound": _ORIGIN[is_given.audio],
        "sampler": stage.sampler,
        "num_inference_steps": len(stage.recipe.sigmas) - 1,
        "sigmas": [round(sigma, 6) for sigma in stage.recipe.sigmas.tolist()],
        "evaluations": len(looks),
        "passes": dict(passes),
        "passes_of_a_step": max((len(look.passes) for look in looks), default=1),
        "rows_at_once": rows_at_once,
        "network_calls": passes.total(),
    }


def looks_of(stage: Stage, given: AV[bool]) -> list[Look]:
    """List the evaluations of a stage; `given` as in `describe`."""
    return rehearse(stage.recipe, given)
