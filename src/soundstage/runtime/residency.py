"""Which networks are on the device just now: they come when they are used and stay until room is needed.

Every network has its home in host memory. `bring` fetches one; when the device would overflow, those that
were not used for longest go first. So what fits stays between runs and stages, and the rest takes turns.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from soundstage.core.errors import ResourceError
from soundstage.runtime.offload import NUM_SLOTS, Hanging, StreamedBlocks, hangings

MARK = "_visitor"  # under this name a network knows its place


@runtime_checkable
class Visitor(Protocol):
    """What can come to the device and go again."""

    num_bytes: int  # on the device

    def enter(self) -> None:
        """Come."""

    def leave(self) -> None:
        """Go; nothing is copied back, because weights do not change on the device."""


class Residency:
    """The device's memory for weights."""

    def __init__(self, device: torch.device, budget: int) -> None:
        """Take charge of a device.

        Args:
            budget: Bytes for the weights that come and go.
        """
        self.device, self.budget = device, budget
        self._present: list[Visitor] = []  # the one used last is the last

    @property
    def num_bytes(self) -> int:
        """Size of what is on the device."""
        return sum(visitor.num_bytes for visitor in self._present)

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

    def bring(self, visitor: Visitor) -> None:
        """Have a visitor on the device, and others leave if they must."""
        if visitor in self._present:
            self._present.remove(visitor)
            self._present.append(visitor)
            return
        while self._present and self.num_bytes + visitor.num_bytes > self.budget:
            self._present.pop(0).leave()
        visitor.enter()
        self._present.append(visitor)

    def dismiss(self, visitor: Visitor) -> None:
        """Have a visitor leave."""
        if visitor in self._present:
            self._present.remove(visitor)
            visitor.leave()


def bring(network: nn.Module) -> None:
    """Have a network on the device before it is used; one that is not managed is there already.

    Calling a managed network does it, too; this is for those that are used by their methods.
    """
    found = network.__dict__.get(MARK)
    if found is not None:
        residency, visitor = found
        residency.bring(visitor)


def send_home(network: nn.Module) -> None:
    """Have all weights of a network at home, where they may be changed; those not managed stay."""
    found = network.__dict__.get(MARK)
    if found is not None:
        residency, visitor = found
        residency.dismiss(visitor)
    for module in network.modules():
        if isinstance(module, StreamedBlocks):
            module.release()


class _Network:
    """A network that comes as a whole, or, with streamed blocks, without those."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network, self._device = network, device
        self._streams = [module for module in network.modules() if isinstance(module, StreamedBlocks)]
        self._tensors = self._at_home()
        slots = sum(NUM_SLOTS * blocks.block_bytes for blocks in self._streams)
        self.num_bytes = slots + sum(tensor.home.nbytes for tensor in self._tensors)

    def enter(self) -> None:
        """Copy the weights."""
        self._tensors = self._at_home()  # anew: LoRAs come and go
        for tensor in self._tensors:
            tensor.put(tensor.home.to(self._device, copy=True))

    def leave(self) -> None:
        """Drop the copies."""
        for blocks in self._streams:
            blocks.release()
        for tensor in self._tensors:
            tensor.put(tensor.home)

    def _at_home(self) -> list[Hanging]:
        inside = {id(module) for blocks in self._streams for module in blocks.modules()}
        return [tensor for tensor in hangings(self._network) if id(tensor.owner) not in inside]
