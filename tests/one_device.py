"""Stands for a GPU where there is none: tensors on `meta` must not meet those of the CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("meta")
MOVES = ("aten.copy_", "aten._to_copy", "aten.index")  # between devices, or positions kept on the CPU


class OneDevice(TorchDispatchMode):
    """Refuses what a GPU would: operations on tensors of two devices, but for numbers of no dimension.

    A value that is read from the device is taken to be one.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        kinds = {tensor.device.type for tensor in tensors if tensor.ndim}
        if len(kinds) > 1 and not str(func).startswith(MOVES):
            raise RuntimeError(f"{func} was given tensors on {' and '.join(sorted(kinds))}")
        if "_local_scalar_dense" in str(func) and tensors[0].is_meta:
            return torch.ones((), dtype=tensors[0].dtype).item()
        return func(*args, **(kwargs or {}))
