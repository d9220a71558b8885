"""Which networks are on the device just now: they come when they are used and stay until room is needed.

Every network has its home in host memory. `bring` fetches one; when the device would overflow, those that
were not used for longest go first. So what fits stays between runs and stages, and the rest takes turns.
What is used together, or by two threads at once, is brought by `in_use`, and does not go while it is.
Large networks may take more than is left to those that only stay: then all go that are not used.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from soundstage.core.errors import ResourceError
from soundstage.runtime.offload import NUM_SLOTS, Hanging, StreamedBlocks, copy_to, hangings

MARK = "_visitor"  # under this name a network knows its place


@runtime_checkable
class Visitor(Protocol):
    """What can come to the device and go again."""

    @property
    def num_bytes(self) -> int:
        """What it takes on the device."""

    def enter(self) -> None:
        """Come."""

    def leave(self) -> None:
        """Go; nothing is copied back, because weights do not change on the device."""


class Residency:
    """The device's memory for weights; threads may share it."""

    def __init__(self, device: torch.device, budget: int, spare: int | None = None) -> None:
        """Take charge of a device.

        Args:
            budget: Bytes for the weights that come and go.
            spare: Bytes up to which networks stay that are not used; all of the budget when absent.
        """
        self.device, self.budget = device, budget
        self.spare = budget if spare is None else spare
        self._present: list[Visitor] = []  # the one used last is the last
        self._pinned: list[Visitor] = []  # as often as they are in use
        self._lock = threading.RLock()

    @property
    def num_bytes(self) -> int:
        """Size of what is on the device."""
        return _size(set(self._present))

    def manage(self, name: str, network: nn.Module) -> None:
        """Take charge of a network whose weights are in host memory; streamed blocks stay where they are.

        Raises:
            ResourceError: It is larger than the whole budget.
        """
        visitor = _Network(network, self.device)
        if visitor.num_bytes > self.budget:
            raise ResourceError(
                f"the {name} takes {visitor.num_bytes / 1e9:.2f} GB on the device, where "
                f"{self.budget / 1e9:.2f} GB are left for it; quantise it, or have it streamed"
            )
        network.__dict__[MARK] = (self, visitor)
        network.register_forward_pre_hook(lambda module, _: bring(module))

    def bring(self, *visitors: Visitor) -> None:
        """Have visitors on the device together, and others leave if they must.

        Raises:
            ResourceError: They do not fit beside each other and what is in use.
        """
        with self._lock:
            stay = {*visitors, *self._pinned}
            needed = _size(stay)
            if needed > self.budget:
                raise ResourceError(
                    f"networks that are used together take {needed / 1e9:.2f} GB on the device, where "
                    f"{self.budget / 1e9:.2f} GB are left for them; quantise more, or have more streamed"
                )
            for visitor in visitors:
                if visitor in self._present:
                    self._present.remove(visitor)
                    self._present.append(visitor)
            coming = [visitor for visitor in visitors if visitor not in self._present]
            self._make_room(_size(set(coming)), stay)
            for visitor in coming:
                if visitor not in self._present:
                    visitor.enter()
                    self._present.append(visitor)

    @contextmanager
    def in_use(self, *visitors: Visitor) -> Iterator[None]:
        """Have visitors on the device together, where none of them leaves inside.

        Raises:
            ResourceError: They do not fit.
        """
        with self._lock:
            self.bring(*visitors)
            self._pinned += visitors
        try:
            yield
        finally:
            with self._lock:
                for visitor in visitors:
                    self._pinned.remove(visitor)

    def has_room_for(self, *visitors: Visitor) -> bool:
        """Tell whether visitors fit beside each other and what is in use."""
        with self._lock:
            return _size({*visitors, *self._pinned}) <= self.budget

    def dismiss(self, visitor: Visitor) -> None:
        """Have a visitor leave."""
        with self._lock:
            assert visitor not in self._pinned, "a network that is in use cannot leave"
            if visitor in self._present:
                self._present.remove(visitor)
                visitor.leave()

    def _make_room(self, num_bytes: int, stay: set[Visitor]) -> None:
        """Have those leave that were not used for longest, except who is to stay."""
        for visitor in list(self._present):
            if self.num_bytes + num_bytes <= min(self.spare, self.budget):
                return
            if visitor not in stay:
                self._present.remove(visitor)
                visitor.leave()


def bring(network: nn.Module) -> None:
    """Have a network on the device before it is used; one that is not managed is there already.

    Calling a managed network does it, too; this is for those that are used by their methods.
    """
    for residency, visitors in _places([network]):
        residency.bring(*visitors)


@contextmanager
def in_use(*networks: nn.Module) -> Iterator[None]:
    """Have networks on the device together for as long as the context lasts.

    Raises:
        ResourceError: They do not fit.
    """
    with ExitStack() as stack:
        for residency, visitors in _places(networks):
            stack.enter_context(residency.in_use(*visitors))
        yield


def fit_together(*networks: nn.Module) -> bool:
    """Tell whether networks can be on the device together."""
    return all(residency.has_room_for(*visitors) for residency, visitors in _places(networks))


def send_home(network: nn.Module) -> None:
    """Have all weights of a network at home, where they may be changed; those not managed stay."""
    for residency, visitors in _places([network]):
        residency.dismiss(*visitors)
    for module in network.modules():
        if isinstance(module, StreamedBlocks):
            module.release()


def visits(network: nn.Module) -> int:
    """Count how often a network has come to the device: after each time its weights may lie elsewhere."""
    for _, visitors in _places([network]):
        for visitor in visitors:
            assert isinstance(visitor, _Network)
            return visitor.visits
    return 0


def _places(networks: Sequence[nn.Module]) -> list[tuple[Residency, list[Visitor]]]:
    """Return who is in charge of which of some networks; those not managed are left out."""
    places: dict[Residency, list[Visitor]] = {}
    for network in networks:
        if MARK in network.__dict__:
            residency, visitor = network.__dict__[MARK]
            places.setdefault(residency, []).append(visitor)
    return list(places.items())


def _size(visitors: set[Visitor]) -> int:
    return sum(visitor.num_bytes for visitor in visitors)


class _Network:
    """A network that comes as a whole, or, with streamed blocks, without those."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network, self._device, self.visits = network, device, 0
        self._streams = [module for module in network.modules() if isinstance(module, StreamedBlocks)]
        self._tensors: list[Hanging] = []  # while it is on the device
        self._size = 0

    @property
    def num_bytes(self) -> int:
        """What it takes on the device; at home counted anew, for LoRAs come and go."""
        return self._size if self._tensors else self._count(self._at_home())

    def _count(self, tensors: Sequence[Hanging]) -> int:
        slots = sum(NUM_SLOTS * blocks.most_bytes for blocks in self._streams)
        return slots + sum(tensor.home.nbytes for tensor in tensors)

    def enter(self) -> None:
        """Copy the weights."""
        self.visits += 1
        self._tensors = self._at_home()
        self._size = self._count(self._tensors)
        copy_to(self._device, self._tensors)

    def leave(self) -> None:
        """Drop the copies."""
        for blocks in self._streams:
            blocks.release()
        for tensor in self._tensors:
            tensor.put(tensor.home)
        self._tensors = []

    def _at_home(self) -> list[Hanging]:
        inside = {id(module) for blocks in self._streams for module in blocks.modules()}
        return [tensor for tensor in hangings(self._network) if id(tensor.owner) not in inside]
