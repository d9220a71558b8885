"""Decide where a model is to be, for the clips that are to be made; get it ready for one that is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.core.errors import RequestError, ResourceError, SoundstageError
from soundstage.pipelines.fitting import Fitted, fit, given_by
from soundstage.pipelines.forecast import Setup, forecast
from soundstage.pipelines.loading import Components
from soundstage.pipelines.placed import Placed
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.preparation import Prepared
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.sketch import text_tower
from soundstage.runtime.planning import DevicePlan, Task, adjust
from soundstage.runtime.rates import CONTEXT_BYTES, available_memory, check_vram, host_budget, rates_of

ANY = GenerationRequest(prompt="a clip of the model's own size")


def place(
    checkpoint: Checkpoint,
    placing: Placing,
    *,
    device: torch.device,
    dtype: torch.dtype,
    text_encoder: Path | None,
    requests: Sequence[GenerationRequest] = (),
    num_shares: int = 1,
) -> Placed:
    """Choose where the weights of a model will be, from its headers and the clips that are to be made.

    Args:
        requests: The one that needs most counts; a clip of the model's own size when there are none. Those
            that cannot be made are left out if there are others: that is said when their turn comes.
        num_shares: Processes that share the transformer's weights, of which each keeps a part.

    Raises:
        RequestError: A size of memory is given that the device does not have.
        ResourceError: They do not fit; says what would.
    """
    stays = device.type == "cpu" and placing.offload in ("auto", "none")
    if stays and placing.vram is not None:
        raise RequestError(
            f"vram={placing.vram} is about the memory of a GPU, and the device is the CPU; leave it out"
        )
    rates = rates_of(device)
    if device.type != "cpu":
        check_vram(placing.vram_bytes, rates)
    setup = Setup(
        checkpoint=checkpoint,
        tower=text_tower(checkpoint, text_encoder),
        placing=placing,
        rates=rates,
        dtype=dtype,
        host_budget=None if device.type == "cpu" else host_budget(),
        num_shares=num_shares,
    )
    if stays:
        return Placed(placing, setup=setup)
    budget = placing.vram_bytes or _free(device, rates.memory)
    fitted, errors = list[Fitted](), list[SoundstageError]()
    for request in dict.fromkeys(replace(one, prompt=ANY.prompt, seed=ANY.seed) for one in requests or [ANY]):
        try:
            fitted.append(fit(setup, request, budget))
        except SoundstageError as error:
            errors.append(error)
    if not fitted:
        raise errors[0]
    tightest = max(fitted, key=lambda one: _need(one.device))
    return Placed(placing, tightest.device, replace(setup, keep_texts=tightest.keep_texts))


def make_room(placed: Placed, components: Components, job: Prepared) -> Components:
    """Get ready for a clip that may be larger than those the model was placed for.

    Blocks stay where they are. What may change is how much of the device networks take turns in, and with it
    how much decoding may take.

    Raises:
        ResourceError: The clip does not fit so; says what to do.
    """
    if placed.setup is None:
        return components
    if placed.plan is None:
        _check_host(forecast(placed.setup, job.plan, given_by(job)))
        return components
    try:
        plan = adjust(forecast(placed.setup, job.plan, given_by(job)), placed.plan)
    except ResourceError as error:
        raise ResourceError(
            f"{error}; load the model for this clip (Pipeline.load with requests=[...]), or ask for less"
        ) from error
    return placed.follow(plan, components)


def _check_host(task: Task) -> None:
    """Refuse a clip that takes more beside the weights than there is; the system would just end it."""
    available = available_memory()
    for phase in task.phases:
        least = phase.least(exact=False)
        if least > available:
            raise ResourceError(
                f"{phase.name} takes {least / 1e9:.1f} GB beside the weights, and {available / 1e9:.1f} GB "
                "are available; ask for a smaller size or fewer frames (`soundstage plan` says what fits)"
            )


def _need(plan: DevicePlan) -> tuple[bool, int, bool, int]:
    """Order plans by how little of the device they leave to weights that stay."""
    staying = sum(plan.streamed.values())
    beside = max(planned.activations for planned in plan.phases)
    return plan.kind != "resident", -staying if plan.kind == "streamed" else -(2**31), plan.on_disk, beside


def _free(device: torch.device, memory: int) -> int:
    """Return what may be used: what is free, and what the driver has taken for this process already."""
    if device.type != "cuda":
        return memory
    free, _ = torch.cuda.mem_get_info(device)
    return free + CONTEXT_BYTES
