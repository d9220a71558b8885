"""Two processes train as one: the same gradients, the same Muon step as a single process takes."""

import torch
from torch import distributed, multiprocessing, nn

from soundstage.training.distributed import agree, average_gradients, share
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


def work(rank: int, address: str, results: "multiprocessing.SimpleQueue[object]") -> None:
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    params = parameters()
    step(params, [100 * rank])
    results.put((rank, share(), agree(rank == 1), [p.detach().tolist() for p in params]))
    distributed.destroy_process_group()


def test_two_processes_take_the_step_of_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=work, args=(rank, f"file://{tmp_path / 'meet'}", results)) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = sorted(results.get() for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    alone = parameters()
    step(alone, [0, 100])
    for rank, (got_rank, shares, anybody, values) in enumerate(found):
        assert (got_rank, shares, anybody) == (rank, (rank, 2), True)
        for value, expected in zip(values, alone, strict=True):
            torch.testing.assert_close(torch.tensor(value), expected.detach(), atol=1e-5, rtol=1e-5)


def test_a_single_process_has_all_the_work():
    assert share() == (0, 1)
    assert not agree(False)
