"""Decide what of a model is where on a device of limited memory, and what that takes at most.

In the order they are tried, each only if the one before does not fit:

| placement | on the device |
|---|---|
| resident | everything, always |
| turns | each network while it works; it stays until another needs the room |
| streamed | of the transformer as many blocks as fit, the others pass through two slots; the rest as before |
| on disk | the same, and the blocks are read from their file, where host memory is too small for them |

The text encoder is streamed, too, wherever it does not fit as a whole, or would keep blocks from staying.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from soundstage.core.errors import ResourceError
from soundstage.runtime.offload import NUM_SLOTS

Offload = Literal["auto", "none", "stream", "disk"]

WHOLE_BLOCKS = 4  # of weights that processes share, at once; measured on CPUs, 3 to 4
COMFORT = 0.8  # of the room that there is; a way that takes less leaves some for what kernels need themselves


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network: what its weights take, and how much of that is in blocks that can be streamed."""

    name: str
    outer: int  # bytes around the blocks, or of a network that has none
    blocks: tuple[int, ...] = ()  # bytes of each
    mapped: tuple[int, ...] = ()  # the same of blocks that are read from disk; as `blocks` when absent
    beside: int = 0  # of what all mapped blocks take, what is not on disk: branches of LoRAs
    copies: int = 0  # bytes of host memory for weights that LoRAs are added into, as they were

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.outer + sum(self.blocks)

    @property
    def block(self) -> int:
        """The largest block."""
        return max(self.blocks, default=0)

    def shared(self, count: int) -> "Part":
        """Return what one of several processes has of it: its share, and the blocks that are whole."""
        if count == 1:
            return self
        return Part(name=self.name, outer=-(-self.num_bytes // count) + WHOLE_BLOCKS * self.block)

    def slot(self, *, on_disk: bool) -> int:
        """The largest block as it comes to the device."""
        return max(self.mapped, default=self.block) if on_disk else self.block

    def passing(self, resident: int, *, on_disk: bool) -> int:
        """Bytes of the blocks that come one after another, when so many stay."""
        blocks = self.mapped or self.blocks if on_disk else self.blocks
        return sum(blocks) * (len(blocks) - resident) // max(len(blocks), 1)


@dataclass(frozen=True, kw_only=True)
class Way:
    """One of several ways to do a piece of work."""

    num_bytes: int
    is_exact: bool = True  # whether it gives what the work gives at once
    rows_at_once: int | None = None  # of the passes of a guided step; of other work nothing


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A piece of the work: which networks it uses together, and what it needs beside their weights."""

    name: str
    parts: tuple[str, ...]
    activations: int  # bytes
    seconds: float | int  # with weights on the device
    sweeps: int = 1  # how often it goes through all blocks
    ways: tuple[Way, ...] = ()  # to do it, the best first, with what each takes beyond `activations`
    num_rows: int = 1  # passes of a guided step, of all clips that are made together

    def least(self, *, exact: bool) -> int:
        """Bytes without which it cannot be done; in an exact way, or in any where there is no such."""
        return self.activations + min((way.num_bytes for way in self._allowed(exact)), default=0)

    def choose(self, room: int, *, exact: bool) -> Way | None:
        """Choose the best way that leaves some of the room free, else the smallest; None without a choice."""
        allowed = self._allowed(exact)
        comfortable = [way for way in allowed if way.num_bytes <= COMFORT * room]
        return comfortable[0] if comfortable else min(allowed, key=lambda way: way.num_bytes, default=None)

    def planned(
        self,
        room: int,
        *,
        exact: bool,
        weights: int = 0,
        reserved: int = 0,
        seconds: float | int | None = None,
    ) -> "PlannedPhase":
        """Settle how it is done where it has so much room beside the weights.

        Args:
            weights: Bytes on the device meanwhile.
            seconds: With waiting; its own when absent.
        """
        room -= self.activations
        way = self.choose(room, exact=exact)
        beside = self.activations + (0 if way is None else way.num_bytes)
        decodes = way is not None and way.rows_at_once is None
        return PlannedPhase(
            phase=self,
            weights=weights,
            activations=beside,
            peak=reserved + weights + beside,
            seconds=self.seconds if seconds is None else seconds,
            room=max(int(COMFORT * room), way.num_bytes) if way is not None and decodes else None,
            is_exact=way is None or way.is_exact,
            rows_at_once=1 if way is None else way.rows_at_once or 1,
        )

    def _allowed(self, exact: bool) -> Sequence[Way]:
        return [way for way in self.ways if way.is_exact or not exact] or self.ways


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """A phase with what it comes to."""

    phase: Phase
    weights: int  # bytes on the device meanwhile
    activations: int  # bytes beside them
    peak: int
    seconds: float | int
    room: int | None = (
        None  # bytes that decoding may take; None where nothing is decoded in one of several ways
    )
    is_exact: bool = True  # whether it is done in an exact way
    rows_at_once: int = 1  # passes of a guided step that a layer takes together


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """What is where, and what it takes."""

    kind: Literal["resident", "turns", "streamed"]
    budget: int  # bytes of the device that may be used
    reserved: int  # of the driver, in every peak
    visitors: int  # bytes for the networks that come and go
    spare: int  # of these, bytes up to which networks stay that are not used
    streamed: Mapping[str, int] = field(default_factory=dict)  # networks whose blocks pass by → how many stay
    on_disk: bool = False
    phases: tuple[PlannedPhase, ...] = ()
    host: int = 0  # bytes of host memory in which weights wait
    host_budget: int | None = None  # bytes of host memory that may be used; None = no limit

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
        """Whether the peak is within the budget, and what waits within that of the host."""
        return self.peak <= self.budget and (self.host_budget is None or self.host <= self.host_budget)

    @property
    def room(self) -> int | None:
        """Bytes that a phase which can be done in several ways may take; None if there is none."""
        return min((planned.room for planned in self.phases if planned.room is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be placed."""

    parts: Mapping[str, Part]
    phases: Sequence[Phase]
    link: float | int  # bytes per second from page-locked host memory to the device
    pageable: float | int = math.inf  # the same from other host memory; no faster than the link
    disk: float | int = math.inf  # bytes per second from disk; no faster than the link
    reserved: int = 0
    main: str = "transformer"
    text: str = "text encoder"


def plan_device(
    task: Task, budget: int, offload: Offload = "auto", *, host_budget: int | None = None
) -> DevicePlan:
    """Choose the fastest placement that fits; one that allows exact ways before any that does not.

    Args:
        budget: Bytes of the device.
        host_budget: Bytes of host memory for weights that wait there; no limit when absent.

    Raises:
        ResourceError: None of those allowed does; says what the smallest would take.
    """
    tried = [
        plan
        for exact in (True, False)
        for plan in _candidates(task, budget, offload, exact=exact, host_budget=host_budget)
    ]
    fitting = [plan for plan in tried if plan.fits]
    if fitting:
        return fitting[0]
    hint = "" if offload in ("auto", "stream", "disk") else f" with --offload {offload}"
    raise _too_small(tried, hint)


def adjust(task: Task, plan: DevicePlan) -> DevicePlan:
    """Plan another task for a model that is placed already: only what networks take turns in can change.

    Raises:
        ResourceError: It does not fit so; says what it would take.
    """
    tried = [
        _simulate(task, plan if plan.kind == "resident" else _roomy(task, plan, exact=exact), exact=exact)
        for exact in (True, False)
    ]
    fitting = [one for one in tried if one.peak <= one.budget]
    if fitting:
        return fitting[0]
    raise _too_small(tried, " as the model is placed")


def _too_small(tried: Sequence[DevicePlan], hint: str) -> ResourceError:
    on_device = [plan for plan in tried if plan.peak <= plan.budget]
    if on_device:
        least = min(on_device, key=lambda plan: plan.host)
        return ResourceError(
            f"{(least.host_budget or 0) / 1e9:.1f} GB of host memory do not suffice{hint}: at least "
            f"{least.host / 1e9:.1f} GB are needed for the weights that wait there"
        )
    least = min(tried, key=lambda plan: plan.peak)
    return ResourceError(
        f"{least.budget / 1e9:.1f} GB of device memory do not suffice{hint}: "
        f"at least {least.peak / 1e9:.1f} GB are needed"
    )


def _candidates(
    task: Task, budget: int, offload: Offload, *, exact: bool, host_budget: int | None
) -> Iterator[DevicePlan]:
    """Yield placements, the fastest first."""
    base = DevicePlan(
        kind="resident",
        budget=budget,
        reserved=task.reserved,
        visitors=budget,
        spare=budget,
        host_budget=host_budget,
    )
    if offload in ("auto", "none"):
        yield _simulate(task, base, exact=exact)
    if offload == "none":
        return
    room = budget - task.reserved - _most_beside(task, exact=exact)
    whole_text = {} if _fits_whole(task, task.text, room) else {task.text: 0}
    if offload == "auto":
        turns = replace(base, kind="turns", streamed=_present(task, whole_text))
        yield _simulate(task, _roomy(task, turns, exact=exact), exact=exact)
    streamed = replace(
        base,
        kind="streamed",
        streamed=_present(task, {**whole_text, task.main: 0}),
        on_disk=offload == "disk",
    )
    if offload != "auto":
        yield _simulate(task, _roomy(task, streamed, exact=exact), exact=exact)
        return
    # Here a text encoder that fits whole would take the room of blocks that can stay.
    streamed = replace(streamed, streamed=_present(task, {task.text: 0, task.main: 0}))
    streamed = _staying(task, streamed, exact=exact)
    yield _simulate(task, _roomy(task, streamed, exact=exact), exact=exact)
    if host_budget is not None:
        mapped = _staying(task, replace(streamed, on_disk=True), exact=exact)
        yield _simulate(task, _roomy(task, mapped, exact=exact), exact=exact)


def _staying(task: Task, plan: DevicePlan, *, exact: bool) -> DevicePlan:
    """Have as many blocks of the main network stay as there is room for in every phase."""
    main = task.parts[task.main]
    if not main.blocks:
        return plan
    room = plan.budget - plan.reserved
    rooms = [room - _together(task, plan, phase) - phase.least(exact=exact) for phase in task.phases]
    count = max(0, min(min(rooms) // main.block, len(main.blocks) - 1))
    return replace(plan, streamed={**plan.streamed, task.main: count})


def _roomy(task: Task, plan: DevicePlan, *, exact: bool) -> DevicePlan:
    """Give the networks that come and go what the phases leave of the device, and no less than they need.

    In a phase that needs less memory beside them, large ones may take more than that; but none stays there
    unused, for the next phase may need it.
    """
    room = plan.budget - plan.reserved - _most_beside(task, exact=exact) - _stays(task, plan)
    largest = max(_together(task, plan, phase) for phase in task.phases)
    return replace(plan, visitors=max(room, largest), spare=max(room, 0))


def _most_beside(task: Task, *, exact: bool) -> int:
    """Return what the largest phase needs beside weights."""
    return max(phase.least(exact=exact) for phase in task.phases)


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
    return part.outer + min(NUM_SLOTS, len(part.blocks)) * part.slot(on_disk=plan.on_disk)


def _together(task: Task, plan: DevicePlan, phase: Phase) -> int:
    """Return what the networks of a phase take beside what stays."""
    return sum(_size(task, plan, name) for name in phase.parts)


def _stays(task: Task, plan: DevicePlan) -> int:
    """Return what is on the device for good."""
    if plan.kind == "resident":
        return sum(part.num_bytes for part in task.parts.values())
    return sum(count * task.parts[name].block for name, count in plan.streamed.items())


def _waits(task: Task, plan: DevicePlan) -> int:
    """Return what is in host memory; blocks that stay on the device, or are mapped from disk, are not."""
    if plan.kind == "resident":
        return sum(part.copies for part in task.parts.values())
    elsewhere = 0
    for name, count in plan.streamed.items():
        part = task.parts[name]
        share, rest = count * sum(part.blocks) // len(part.blocks), len(part.blocks) - count
        elsewhere += share
        if plan.on_disk:
            elsewhere += sum(part.blocks) - share
            elsewhere += rest * (part.copies - part.beside) // len(part.blocks)
    return sum(part.num_bytes + part.copies for part in task.parts.values()) - elsewhere


def _simulate(task: Task, plan: DevicePlan, *, exact: bool) -> DevicePlan:
    """Go through the phases as they will run, networks coming and going."""
    stays = _stays(task, plan)
    # A network that waits as a whole is not page-locked; blocks that pass by are, unless they are on disk.
    whole_rate = min(task.link, task.pageable)
    block_rate = min(task.link, task.disk if plan.on_disk else task.link)
    present: list[str] = []
    phases = []
    for phase in task.phases:
        arriving = 0
        for name in phase.parts if plan.kind != "resident" else ():
            if name in present:
                present.remove(name)
            else:
                arriving += _size(task, plan, name)
            present.append(name)
        for name in list(present):  # the one used last is the last
            if name not in phase.parts and sum(_size(task, plan, n) for n in present) > plan.spare:
                present.remove(name)
        weights = stays + sum(_size(task, plan, name) for name in present)
        passing = sum(
            task.parts[name].passing(plan.streamed[name], on_disk=plan.on_disk)
            for name in phase.parts
            if name in plan.streamed
        )
        # Copies of blocks hide behind computation; whole networks are waited for.
        seconds = max(phase.seconds, phase.sweeps * passing / block_rate) + arriving / whole_rate
        room = plan.budget - plan.reserved - weights
        phases.append(
            phase.planned(room, exact=exact, weights=weights, reserved=plan.reserved, seconds=seconds)
        )
    return replace(plan, phases=tuple(phases), host=_waits(task, plan))
