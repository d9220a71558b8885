"""Several processes, one model: gradients are averaged after each backward pass (launched by torchrun)."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from soundstage.core.errors import RequestError
from soundstage.runtime.distributed import PATIENCE, launched


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Meet the other processes of a `torchrun`, if there are any, and part when the block ends.

    Args:
        device: What kind to train on; of several GPUs each process takes its own.

    Returns:
        The device of this process.

    Raises:
        RequestError: There are more processes than GPUs.
    """
    if not launched():
        yield device
        return
    if device.type == "cuda":
        index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if index >= count:
            raise RequestError(
                f"process {index} of this machine has no GPU of its own: there are {count}; "
                f"use torchrun --nproc-per-node {count}"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def share() -> tuple[int, int]:
    """Return (rank, number of processes), to split work by; (0, 1) without a group."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def average_gradients(params: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    if distributed.is_initialized():
        sum_gradients(params, scale=1 / distributed.get_world_size())


def sum_gradients(params: Iterable[nn.Parameter], scale: float = 1.0) -> None:
    """Replace each gradient by its sum over the processes, times `scale`, in one message."""
    if not distributed.is_initialized():
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    distributed.all_reduce(flat)
    flat *= scale
    start = 0
    for grad in grads:
        grad.copy_(flat[start : start + grad.numel()].view_as(grad))
        start += grad.numel()


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the tensors of the first."""
    if distributed.is_initialized():
        for tensor in tensors:
            whole = tensor.contiguous()  # kernels may lie in memory with their channels last
            distributed.broadcast(whole, 0)
            tensor.copy_(whole)


def agree(value: bool) -> bool:
    """Tell whether any process says yes; the answer is the same everywhere."""
    if not distributed.is_initialized():
        return value
    # NCCL sends what lies on a GPU, and nothing else; each process has made its own the current one.
    place = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    flag = torch.tensor([float(value)], device=place)
    distributed.all_reduce(flag)
    return bool(flag.item() > 0)
