"""Decide where a model is to be, for the clips that are to be made; get it ready for one that is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.core.errors import RequestError, ResourceError, SoundstageError
from soundstage.nn.kernels.choice import choose_kernels, why_not_triton
from soundstage.pipelines.compute import Compute
from soundstage.pipelines.fitting import Fitted, fit, given_by, rows_at_once
from soundstage.pipelines.forecast import Setup, forecast
from soundstage.pipelines.loading import Components
from soundstage.pipelines.loras import choose_loras
from soundstage.pipelines.placed import Placed
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.preparation import Prepared
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.sketch import text_tower
from soundstage.runtime.planning import DevicePlan, Task, adjust
from soundstage.runtime.rates import available_memory, check_vram, host_budget, rates_of, usable_memory

ANY = GenerationRequest(prompt="a clip of the model's own size")


def place(
    checkpoint: Checkpoint,
    placing: Placing,
    *,
    device: torch.device,
    dtype: torch.dtype,
    text_encoder: Path | None,
    requests: Sequence[GenerationRequest] = (),
    num_clips: int = 1,
    num_shares: int = 1,
    compute: Compute | None = None,
) -> Placed:
    """Choose where the weights of a model will be, from its headers and the clips that are to be made.

    Args:
        requests: The one that needs most counts; a clip of the model's own size when there are none. Those
            that cannot be made are left out if there are others: that is said when their turn comes.
        num_clips: Clips of a request that are made together.
        num_shares: Processes that share the transformer's weights, of which each keeps a part.
        compute: How the transformer will compute.

    Raises:
        RequestError: A size of memory is given that the device does not have; or kernels cannot run there.
        CheckpointError: LoRAs do not go with the model.
        ResourceError: They do not fit; says what would.
    """
    _check_loras(checkpoint, requests)
    setup = _setup(checkpoint, placing, device, dtype, text_encoder, compute, num_shares=num_shares)
    if _stays(placing, device):
        return Placed(placing, setup=setup)
    budget = _budget(setup, device)
    fitted, errors = list[Fitted](), list[SoundstageError]()
    for request in dict.fromkeys(replace(one, prompt=ANY.prompt, seed=ANY.seed) for one in requests or [ANY]):
        try:
            fitted.append(fit(setup, request, budget, num_clips=num_clips))
        except SoundstageError as error:
            errors.append(error)
    if not fitted:
        raise errors[0]
    tightest = max(fitted, key=lambda one: _need(one.device))
    return Placed(placing, tightest.device, replace(setup, keep_texts=tightest.keep_texts))


def foresee(
    checkpoint: Checkpoint,
    placing: Placing,
    job: Prepared,
    *,
    device: torch.device,
    dtype: torch.dtype,
    text_encoder: Path | None,
    compute: Compute | None = None,
) -> dict[str, int]:
    """Tell how many passes of a step will go through a layer together, by stage, before anything is loaded.

    Args:
        compute: How the transformer will compute.

    Raises:
        RequestError: A size of memory is given that the device does not have; or kernels cannot run there.
        ResourceError: The clip does not fit; says what would.
    """
    setup = _setup(checkpoint, placing, device, dtype, text_encoder, compute)
    if not _stays(placing, device):
        return fit(setup, job.request, _budget(setup, device)).rows_at_once
    task = forecast(setup, job.plan, given_by(job, dtype.itemsize))
    weights = sum(part.num_bytes for part in task.parts.values())
    return _within_host(task, job, available_memory() - weights)


def make_room(placed: Placed, components: Components, job: Prepared) -> tuple[Components, Prepared]:
    """Get ready for a clip that may be larger than those the model was placed for.

    Blocks stay where they are. What may change is how much of the device networks take turns in, and with it
    how much decoding may take, and how many passes go through a layer together.

    Returns:
        The networks, and the clip with how many passes go together.

    Raises:
        ResourceError: The clip does not fit so; says what to do.
    """
    if placed.setup is None:
        return components, job
    task = forecast(placed.setup, job.plan, given_by(job, placed.setup.dtype.itemsize))
    if placed.plan is None:
        return components, replace(job, rows_at_once=_within_host(task, job, available_memory()))
    try:
        plan = adjust(task, placed.plan)
    except ResourceError as error:
        raise ResourceError(
            f"{error}; load the model for this clip (Pipeline.load with requests=[...]), or ask for less"
        ) from error
    return placed.follow(plan, components), replace(job, rows_at_once=rows_at_once(job.plan, plan.phases))


def _setup(
    checkpoint: Checkpoint,
    placing: Placing,
    device: torch.device,
    dtype: torch.dtype,
    text_encoder: Path | None,
    compute: Compute | None,
    *,
    num_shares: int = 1,
) -> Setup:
    check_device(placing, device)
    rates = rates_of(device)
    if device.type != "cpu":
        check_vram(placing.vram_bytes, rates)
    return Setup(
        checkpoint=checkpoint,
        tower=text_tower(checkpoint, text_encoder),
        placing=placing,
        rates=rates,
        dtype=dtype,
        host_budget=None if device.type == "cpu" else host_budget(),
        num_shares=num_shares,
        is_fused=is_fused(compute or Compute(), device),
    )


def check_device(placing: Placing, device: torch.device) -> None:
    """Refuse a size of memory where nothing is placed by it.

    Raises:
        RequestError: It is given for a CPU, on which weights stay.
    """
    if _stays(placing, device) and placing.vram is not None:
        raise RequestError(
            f"vram={placing.vram} is about the memory of a GPU, and the device is the CPU; leave it out"
        )


def is_fused(compute: Compute, device: torch.device) -> bool:
    """Tell whether Triton's kernels will run in the transformer.

    Raises:
        RequestError: They are asked for and cannot run; says why.
    """
    if compute.kernels == "auto":  # choosing is left to whoever equips the transformer, who says why not
        has_triton = why_not_triton(device) is None
    else:
        has_triton = choose_kernels(compute.kernels, device).name == "triton"
    return has_triton and compute.compile != "blocks"  # which fuses in its own way


def _stays(placing: Placing, device: torch.device) -> bool:
    """Tell whether weights are where they are used, and nothing is to be placed."""
    return device.type == "cpu" and placing.offload in ("auto", "none")


def _budget(setup: Setup, device: torch.device) -> int:
    return setup.placing.vram_bytes or usable_memory(device)


def _check_loras(checkpoint: Checkpoint, requests: Sequence[GenerationRequest]) -> None:
    """Refuse LoRAs that do not go with the model, before the model is loaded; one clip of several may."""
    errors = list[SoundstageError]()
    kinds = dict.fromkeys(request.loras for request in requests)
    for loras in kinds:
        try:
            choose_loras(loras, checkpoint)
        except SoundstageError as error:
            errors.append(error)
    if errors and len(errors) == len(kinds):
        raise errors[0]


def _within_host(task: Task, job: Prepared, available: int) -> dict[str, int]:
    """Find out how many passes go together in host memory.

    Raises:
        ResourceError: A phase takes more beside the weights than there is; the system would just end it.
    """
    planned = [one.planned(available, exact=False) for one in task.phases]
    for one in planned:
        if one.peak > available:
            fewer = "fewer frames" if job.num_clips == 1 else "fewer frames or clips at once"
            raise ResourceError(
                f"{one.phase.name} takes {one.peak / 1e9:.1f} GB beside the weights, and "
                f"{available / 1e9:.1f} GB are available; ask for a smaller size or {fewer} "
                "(`soundstage plan` says what fits)"
            )
    return rows_at_once(job.plan, planned)


def _need(plan: DevicePlan) -> tuple[bool, int, bool, int]:
    """Order plans by how little of the device they leave to weights that stay."""
    staying = sum(plan.streamed.values())
    beside = max(planned.activations for planned in plan.phases)
    return plan.kind != "resident", -staying if plan.kind == "streamed" else -(2**31), plan.on_disk, beside
