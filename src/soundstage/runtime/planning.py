"""Decide what of a model is where on a device of limited memory, and what that takes at most.

In the order they are tried, each only if the one before does not fit:

| placement | on the device |
|---|---|
| resident | everything, always |
| turns | each network while it works; it stays until another needs the room |
| streamed | of the transformer as many blocks as fit, the others pass through two slots; the rest as before |

The text encoder is streamed, too, wherever it does not fit as a whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from soundstage.core.errors import ResourceError
from soundstage.runtime.offload import NUM_SLOTS

Offload = Literal["auto", "none", "stream", "disk"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network: what its weights take, and how much of that is in blocks that can be streamed."""

    name: str
    outer: int  # bytes around the blocks, or of a network that has none
    blocks: tuple[int, ...] = ()  # bytes of each

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.outer + sum(self.blocks)

    @property
    def block(self) -> int:
        """The largest block."""
        return max(self.blocks, default=0)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A piece of the work: which networks it uses together, and what it needs beside their weights."""

    name: str
    parts: tuple[str, ...]
    activations: int  # bytes
    seconds: float | int  # with weights on the device
    sweeps: int = 1  # how often it goes through all blocks


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """A phase with what it comes to."""

    phase: Phase
    weights: int  # bytes on the device meanwhile
    peak: int
    seconds: float | int


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """What is where, and what it takes."""

    kind: Literal["resident", "turns", "streamed"]
    budget: int  # bytes of the device that may be used
    reserved: int  # of the driver, in every peak
    visitors: int  # bytes for the networks that come and go
    streamed: Mapping[str, int] = field(default_factory=dict)  # networks whose blocks pass by → how many stay
    on_disk: bool = False
    phases: tuple[PlannedPhase, ...] = ()

    @property
    def peak(self) -> int:
        """The largest of all phases."""
        return max(planned.peak for planned in self.phases)

    @property
    def seconds(self) -> float | int:
        """Of all phases."""
        return sum(planned.seconds for planned in self.phases)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget."""
        return self.peak <= self.budget


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be placed."""

    parts: Mapping[str, Part]
    phases: Sequence[Phase]
    link: float | int  # bytes per second from host to device
    reserved: int = 0
    main: str = "transformer"
    text: str = "text encoder"


def plan_device(task: Task, budget: int, offload: Offload = "auto") -> DevicePlan:
    """Choose the fastest placement that fits.

    Raises:
        ResourceError: None of those allowed does; says what the smallest would take.
    """
    tried = list(_candidates(task, budget, offload))
    fitting = [plan for plan in tried if plan.fits]
    if fitting:
        return fitting[0]
    least = min(tried, key=lambda plan: plan.peak)
    hint = "" if offload in ("auto", "stream", "disk") else f" with --offload {offload}"
    raise ResourceError(
        f"{budget / 1e9:.1f} GB of device memory do not suffice{hint}: "
        f"at least {least.peak / 1e9:.1f} GB are needed"
    )


def _candidates(task: Task, budget: int, offload: Offload) -> Iterator[DevicePlan]:
    """Yield placements, the fastest first."""
    if offload in ("auto", "none"):
        yield _simulate(
            task, DevicePlan(kind="resident", budget=budget, reserved=task.reserved, visitors=budget)
        )
    if offload == "none":
        return
    room = budget - task.reserved - max(phase.activations for phase in task.phases)
    base = DevicePlan(kind="turns", budget=budget, reserved=task.reserved, visitors=max(room, 0))
    whole_text = {} if _fits_whole(task, task.text, room) else {task.text: 0}
    if offload == "auto":
        turns = replace(base, streamed=_present(task, whole_text))
        yield _simulate(task, replace(turns, visitors=max(room, _largest(task, turns))))
    streamed = {**whole_text, task.main: 0}
    alone = replace(base, kind="streamed", streamed=_present(task, streamed))
    main = task.parts[task.main]
    needed = _largest(task, alone)
    resident = 0
    if offload == "auto" and main.blocks:
        resident = max(0, min((room - needed) // main.block, len(main.blocks) - 1))
    streamed = {**streamed, task.main: resident}
    yield _simulate(
        task,
        replace(
            base,
            kind="streamed",
            streamed=_present(task, streamed),
            visitors=max(room - resident * main.block, needed),
            on_disk=offload == "disk",
        ),
    )


def _present(task: Task, streamed: Mapping[str, int]) -> dict[str, int]:
    """Leave out networks that there are not, or that have no blocks."""
    return {name: count for name, count in streamed.items() if name in task.parts and task.parts[name].blocks}


def _fits_whole(task: Task, name: str, room: int) -> bool:
    return name not in task.parts or task.parts[name].num_bytes <= room


def _size(task: Task, plan: DevicePlan, name: str) -> int:
    """Return what a network takes when it comes: all of it, or its slots and what is around the blocks."""
    part = task.parts[name]
    if name not in plan.streamed:
        return part.num_bytes
    return part.outer + min(NUM_SLOTS, len(part.blocks)) * part.block


def _largest(task: Task, plan: DevicePlan) -> int:
    """Return what the largest network takes that comes and goes."""
    return max(_size(task, plan, name) for phase in task.phases for name in phase.parts)


def _simulate(task: Task, plan: DevicePlan) -> DevicePlan:
    """Go through the phases as they will run, networks coming and going."""
    stays = sum(count * task.parts[name].block for name, count in plan.streamed.items())
    if plan.kind == "resident":
        stays = sum(part.num_bytes for part in task.parts.values())
    present: list[str] = []
    phases = []
    for phase in task.phases:
        arriving = 0
        for name in phase.parts if plan.kind != "resident" else ():
            if name in present:
                present.remove(name)
            else:
                arriving += _size(task, plan, name)
                while present and sum(_size(task, plan, n) for n in (*present, name)) > plan.visitors:
                    present.pop(0)
            present.append(name)
        weights = stays + sum(_size(task, plan, name) for name in present)
        passing = sum(
            sum(task.parts[name].blocks) - plan.streamed[name] * task.parts[name].block
            for name in phase.parts
            if name in plan.streamed
        )
        # Copies of blocks hide behind computation; whole networks are waited for.
        seconds = max(phase.seconds, phase.sweeps * passing / task.link) + arriving / task.link
        phases.append(
            PlannedPhase(
                phase=phase,
                weights=weights,
                peak=plan.reserved + weights + phase.activations,
                seconds=seconds,
            )
        )
    return replace(plan, phases=tuple(phases))
