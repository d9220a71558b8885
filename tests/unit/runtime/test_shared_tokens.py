"""Attention over tokens that several processes share; threads stand for processes."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import tiny
from soundstage.core.errors import RequestError
from soundstage.core.types import AV
from soundstage.models.transformer import attention_weights
from soundstage.models.transformer.attention_weights import FactoredAttentionWeights, weights_to_bias
from soundstage.nn.attention import Attention, KeyValue
from soundstage.nn.attention_parts import AttentionParts
from soundstage.pipelines.batching import CPU_NUMBERS
from soundstage.pipelines.compute import ExchangeName
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.equipment import Equipment
from soundstage.pipelines.teamwork import TeamDenoiser, settle_exchange
from soundstage.runtime.distributed import Group, Team
from soundstage.runtime.offload import StreamingPlan, stream
from soundstage.runtime.shared_tokens import EXCHANGES, choose_exchange, shared_tokens

HEADS, TOKENS, SOUND = 6, 11, 4


class Table:
    """Where threads lay down what the others take."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.places: list[Any] = [None] * size

    def swap(self, rank: int, thing: Any) -> list[Any]:
        self.places[rank] = thing
        self.barrier.wait()
        taken = list(self.places)
        self.barrier.wait()
        return taken


@dataclass(frozen=True, kw_only=True)
class ThreadGroup(Group):
    """A group of threads."""

    table: Table = field(default_factory=lambda: Table(1))

    def gather(self, x: Tensor, dim: int, lengths: Sequence[int] | None = None) -> Tensor:
        assert lengths is None
        return torch.cat(self.table.swap(self.rank, x), dim)

    def exchange(self, x: Tensor, given: Sequence[int], taken: Sequence[int]) -> Tensor:
        sent = self.table.swap(self.rank, x.split(list(given)))
        parts = [parts[self.rank] for parts in sent]
        assert [len(part) for part in parts] == list(taken)
        return torch.cat(parts)

    def pass_on(self, x: Tensor, coming: Tensor) -> Callable[[], None]:
        came = self.table.swap(self.rank, x)[(self.rank - 1) % self.size].clone()
        coming.fill_(torch.nan)  # it is not there before it has arrived

        def arrived() -> None:
            coming.copy_(came)

        return arrived


def in_team(size: int, work: Callable[[Group], Tensor]) -> list[Tensor]:
    table = Table(size)
    groups = [ThreadGroup(size=size, rank=rank, table=table) for rank in range(size)]
    with ThreadPoolExecutor(size) as threads, torch.no_grad():
        return list(threads.map(work, groups))


def fixture(num_queries: int) -> tuple[Attention, Tensor, KeyValue]:
    torch.manual_seed(0)
    x = [torch.randn(2, n, HEADS * 4) for n in (num_queries, TOKENS, TOKENS)]
    return Attention(8, heads=HEADS, head_dim=4), x[0], KeyValue(*x[1:])


def bias_of(kind: str) -> Tensor | AttentionParts | None:
    if kind == "none":
        return None
    groups = torch.tensor([0] * 5 + [1] * 4 + [2] * 2)
    between = torch.tensor([[1.0, 0.5, 0.3], [0.2, 1.0, 0.0], [0.0, 0.0, 1.0]])
    weights = FactoredAttentionWeights.from_groups(groups, between)
    return weights_to_bias(weights.weights() if kind == "whole" else weights, torch.float32)


WAYS = [("ulysses", 2), ("ulysses", 3), ("ring", 2), ("ring", 3), ("ring", 4), ("ring", 5)]


# Parts: of queries that are limited alike (least 1), or one of all (least 32); biases are held or made.
@pytest.mark.parametrize(("kind", "least"), [("none", 32), ("whole", 32), ("parts", 1), ("parts", 32)])
@pytest.mark.parametrize("held", [0, 2**20])
@pytest.mark.parametrize(("name", "size"), WAYS)
def test_tokens_of_several_processes_attend_as_those_of_one(
    name: str, size: int, kind: str, least: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_weights, "LEAST", least)
    monkeypatch.setattr(attention_weights, "HELD", held)
    attention, query, keys_values = fixture(TOKENS)
    bias = bias_of(kind)
    with torch.no_grad():
        expected = attention.mix(query, keys_values, bias=bias)

    def work(group: Group) -> Tensor:
        own = group.share(TOKENS)
        mine = KeyValue(*(part[:, own] for part in keys_values))
        alike = Attention(8, heads=HEADS, head_dim=4)
        return EXCHANGES[name](group, group.shares(TOKENS)).among(alike, query[:, own], mine, bias=bias)

    torch.testing.assert_close(torch.cat(in_team(size, work), dim=1), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("name", "size"), WAYS)
def test_sound_that_every_process_has_hears_the_same_everywhere(name: str, size: int) -> None:
    attention, query, keys_values = fixture(SOUND)
    with torch.no_grad():
        expected = attention.mix(query, keys_values)

    def work(group: Group) -> Tensor:
        mine = KeyValue(*(part[:, group.share(TOKENS)] for part in keys_values))
        alike = Attention(8, heads=HEADS, head_dim=4)
        return EXCHANGES[name](group, group.shares(TOKENS)).toward(alike, query, mine)

    first, *others = in_team(size, work)
    torch.testing.assert_close(first, expected, atol=2e-6, rtol=0)
    assert all(torch.equal(first, other) for other in others)


def test_every_exchange_can_be_chosen() -> None:
    assert set(get_args(ExchangeName)) == {"auto", *EXCHANGES}


def test_the_ring_is_taken_where_heads_cannot_be_dealt_out() -> None:
    transformer = tiny.modules("2.3")["transformer"]  # of 2 heads
    assert [choose_exchange("auto", transformer, Group(size=n)) for n in (2, 3, 4)] == [
        "ulysses",
        "ring",
        "ring",
    ]
    assert choose_exchange("ring", transformer, Group(size=2)) == "ring"
    with pytest.raises(
        RequestError, match=r"sequence_parallel=3 does not divide 2 heads.*; 1, 2 do, or use 'ring'"
    ):
        choose_exchange("ulysses", transformer, Group(size=3))
    with pytest.raises(RequestError, match="sequence_exchange 'rings' is not one of auto, ulysses, ring"):
        choose_exchange("rings", transformer, Group(size=2))


def test_what_was_chosen_is_said_and_never_approximate(caplog: pytest.LogCaptureFixture) -> None:
    transformer, team = tiny.modules("2.3")["transformer"], Team(sequence=Group(size=3))
    exact = Equipment(attention="sdpa", kernels="torch", is_exact=True, forward=transformer)
    with caplog.at_level(logging.INFO, "soundstage"):
        assert settle_exchange(team, transformer, exact) == "ring"
    assert caplog.messages == ["tokens shared by 3 processes: ring, attention flash-cpu"]
    rough = Equipment(attention="sage", kernels="torch", is_exact=False, forward=transformer)
    with pytest.raises(RequestError, match="attention 'sage' is approximate"):
        settle_exchange(team, transformer, rough)


@pytest.mark.parametrize("planned", [None, (4, 2)])
def test_processes_of_unequal_shares_take_as_many_rows_at_once(planned: tuple[int, int] | None) -> None:
    """They would exchange different numbers of times otherwise, and wait for each other forever."""
    transformer = tiny.modules("2.3")["transformer"]
    share = CPU_NUMBERS // (2 * transformer.config.video.dim)  # of these two rows gain, of one token more one
    num_tokens = 2 * share + 1
    empty = torch.zeros(1, num_tokens, 1)
    state = StreamState(
        latents=empty,
        clean=empty,
        denoise_mask=empty,
        positions=torch.zeros(1, 3, num_tokens, 2),
        num_target=num_tokens,
        groups=torch.zeros(num_tokens, dtype=torch.long),
        strengths=torch.ones(num_tokens),
    )
    made = []

    def make(streams: AV[StreamState], rows_at_once: int | None) -> Any:
        made.append((streams.video.clean.shape[1], rows_at_once))

    class Told(Group):
        """Knows what the other says."""

        def gather(self, x: torch.Tensor, dim: int, **_: Any) -> torch.Tensor:
            return torch.tensor(planned) if planned else torch.cat([x, x])

    for rank in range(2):
        team = Team(sequence=Told(size=2, rank=rank))
        TeamDenoiser(make, transformer, AV(state, None), team, planned and planned[rank])
    assert [tokens for tokens, _ in made] == [share + 1, share]
    assert [rows for _, rows in made] == ([2, 2] if planned else [1, 1])


def test_sharing_tokens_brings_no_block_to_the_device() -> None:
    transformer = tiny.modules("2.3")["transformer"]
    blocks = stream(transformer, "transformer_blocks", StreamingPlan(device=torch.device("cpu")))
    with shared_tokens(transformer, Group(size=2), num_tokens=4, exchange="ring"):
        assert not blocks.is_out
        assert all("mix" in vars(block.attn1) for block in blocks)
    assert not any("mix" in vars(block.attn1) for block in blocks)
