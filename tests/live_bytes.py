"""Count the bytes of tensors that are alive, on any device: what a memory profiler does on a GPU."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make inside the context, for as long as they are alive.

    Tensors made before the context, such as weights at home, can be left out. What a kernel takes for itself
    while it runs is not seen.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._at_most = 0  # what is alive; memory that went since it was last counted is still in it
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}  # storage → the memory, its size
        self._before: set[int] = set()

    def ignore(self, *networks):
        """Leave out the memory of networks that are there already."""
        for network in networks:
            for tensor in (*network.parameters(), *network.buffers()):
                self._before.add(tensor.untyped_storage()._cdata)
        return self

    @property
    def now(self):
        self._alive = {key: (ref, size) for key, (ref, size) in self._alive.items() if not ref.expired()}
        return sum(size for _, size in self._alive.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage):
        key = storage._cdata
        known = self._alive.get(key)
        if key in self._before or (known is not None and not known[0].expired()):
            return
        self._alive[key] = (StorageWeakRef(storage), storage.nbytes())
        self._at_most += storage.nbytes()
        if self._at_most > self.peak:
            self._at_most = self.now
            self.peak = max(self.peak, self._at_most)
