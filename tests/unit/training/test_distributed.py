"""Two processes train as one: the same gradients, the same Muon step as a single process takes."""

import os
import socket

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from soundstage.core.errors import RequestError
from soundstage.training.distributed import agree, average_gradients, broadcast, joined, share
from soundstage.training.optim import Muon

SHAPES = [(12, 20), (9, 9), (30, 10)]


def parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def step(params: list[nn.Parameter], seeds: list[int]) -> None:
    """Take a Muon step on the mean of the gradients that the seeds stand for."""
    for index, param in enumerate(params):
        draws = [torch.randn(param.shape, generator=torch.Generator().manual_seed(s + index)) for s in seeds]
        param.grad = torch.stack(draws).mean(0)
    average_gradients(params)
    Muon(params, lr=0.1).step()


def as_process(rank: int, port: int) -> dict[str, str]:
    """Return what `torchrun` tells one of two processes of a machine."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return dict(zip(names, (str(rank), str(rank), "2", "127.0.0.1", str(port)), strict=True))


def work(rank: int, port: int, results: "multiprocessing.SimpleQueue[object]") -> None:
    os.environ.update(as_process(rank, port))
    with joined(torch.device("cpu")) as device:
        params = parameters()
        step(params, [100 * rank])
        kernel = torch.full((2, 3, 2, 2), float(rank)).to(memory_format=torch.channels_last)
        broadcast([kernel])
        values = [p.detach().tolist() for p in params]
        results.put((rank, share(), agree(rank == 1), device.type, kernel.sum().item(), values))


def test_two_processes_take_the_step_of_one():
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [context.Process(target=work, args=(rank, port, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = sorted(results.get() for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    alone = parameters()
    step(alone, [0, 100])
    for rank, (got_rank, shares, anybody, device, kernel, values) in enumerate(found):
        assert (got_rank, shares, anybody, device, kernel) == (rank, (rank, 2), True, "cpu", 0)
        for value, expected in zip(values, alone, strict=True):
            torch.testing.assert_close(torch.tensor(value), expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.fixture
def second_of_two(monkeypatch):
    """Pretend to be the second process on a machine with two GPUs; list what it does to meet the first."""
    done = []
    for name, value in as_process(1, 0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(str(device)))
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, timeout: done.append(backend))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: done.append("parted"))
    return done


def test_each_process_takes_a_gpu_of_its_own(second_of_two):
    with joined(torch.device("cuda")) as device:
        assert device == torch.device("cuda", 1)
    assert second_of_two == ["cuda:1", "nccl", "parted"]


def test_processes_that_train_on_the_cpu_leave_gpus_alone(second_of_two):
    with joined(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
    assert second_of_two == ["gloo", "parted"]


def test_a_process_without_a_gpu_of_its_own_is_told_how_many_there_are(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(RequestError, match="there are 1; use torchrun --nproc-per-node 1"),
        joined(torch.device("cuda")),
    ):
        pass
    assert second_of_two == []


@pytest.mark.parametrize(("backend", "place"), [("nccl", "cuda"), ("gloo", "cpu")])
def test_a_vote_lies_where_the_backend_can_send_it(monkeypatch, backend, place):
    class SentError(Exception):
        pass

    def send(flag):
        raise SentError(flag.device.type)

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(distributed, "all_reduce", send)
    with FakeTensorMode(), pytest.raises(SentError, match=place):
        agree(True)


def test_a_single_process_has_all_the_work():
    assert share() == (0, 1)
    assert not agree(False)
