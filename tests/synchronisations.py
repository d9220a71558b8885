"""Finds operations that make the host wait for the device."""

from torch.utils._python_dispatch import TorchDispatchMode


class Synchronisations(TorchDispatchMode):
    """Counts operations that wait for a device: reading a value, or making a shape of values."""

    WAITING = ("_local_scalar_dense", "nonzero", "_unique", "is_nonzero", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.WAITING):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
