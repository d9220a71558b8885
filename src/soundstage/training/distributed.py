"""Several processes, one model: gradients are averaged after each backward pass (launched by torchrun)."""

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn


def start() -> tuple[int, int]:
    """Join the process group that torchrun announces; return (rank, number of processes)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return int(os.environ.get("RANK", "0")), size


def stop() -> None:
    """Leave the process group."""
    if distributed.is_initialized():
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
            distributed.broadcast(tensor, 0)


def agree(value: bool) -> bool:
    """Tell whether any process says yes; the answer is the same everywhere."""
    if not distributed.is_initialized():
        return value
    flag = torch.tensor([float(value)])
    distributed.all_reduce(flag)
    return bool(flag.item() > 0)
