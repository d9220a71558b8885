"""`torch.compile` for the blocks of a network, with the seconds that compiling took.

What is compiled are the pieces of a block that are nothing but tensors: projections with norms and rotations,
gates with the output projection, the feed-forward layer. Attention itself keeps the kernel that was chosen
for it, and which rows and texts a layer takes together stays plain Python.

A piece is compiled for the first layer that calls it, and every layer of its shape shares it: how many graphs
there are does not depend on the number of blocks. Number of tokens and batch are left open, so that another
size shares it, too. Names and weights stay as they are.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from soundstage.core.errors import ResourceError
from soundstage.nn.attention import Attention
from soundstage.nn.feed_forward import FeedForward

P = ParamSpec("P")
T = TypeVar("T")

# Methods whose arguments and results are tensors.
PIECES: Mapping[type[nn.Module], Sequence[str]] = {
    Attention: ("project_all", "project_query", "project_context", "combine"),
    FeedForward: ("widen", "narrow"),
}
VARIANTS = 64  # of one piece: streams, sizes that need code of their own, formats of weights
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What was done once, and what it cost."""

    what: str
    seconds: float


@dataclass
class CompiledTransformer:
    """Calls a transformer whose blocks are compiled, and tells of the calls that compiled something."""

    transformer: Callable[..., Any]
    cold_starts: list[ColdStart] = field(default_factory=list)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Call it; a call with new graphs is a cold start, however long the call itself takes."""
        before, begun = _num_graphs(), time.perf_counter()
        result = self.transformer(*args, **kwargs)
        new = _num_graphs() - before
        if new > 0:
            start = ColdStart(what=f"a step that compiled {new} graphs", seconds=_now() - begun)
            logger.info("%s took %.1f s", start.what, start.seconds)
            self.cold_starts.append(start)
        return result


def compile_blocks(
    network: nn.Module,
    *,
    inside: str = "transformer_blocks",
    backend: str | Callable[..., Any] = "inductor",
    dynamic: bool = True,
    fullgraph: bool = False,
) -> int:
    """Compile the pieces of every block, in place, when they are first called; return the number of blocks.

    Args:
        inside: Name of the list of blocks.
        dynamic: One code for all numbers of tokens; False makes faster code for each.
        fullgraph: Fail where a piece is not one graph, as one of layers in a rare format may not be.

    Raises:
        ResourceError: The network has no such blocks.
    """
    blocks = _blocks(network, inside)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    compiled = {
        (kind, name): torch.compile(
            getattr(kind, name), backend=backend, dynamic=dynamic, fullgraph=fullgraph
        )
        for kind, names in PIECES.items()
        for name in names
    }
    for layer in _layers(blocks):
        for name in PIECES[type(layer)]:
            layer.__dict__[name] = MethodType(compiled[type(layer), name], layer)
    return len(blocks)


def uncompile_blocks(network: nn.Module, *, inside: str = "transformer_blocks") -> None:
    """Have the blocks run as they are written again."""
    for layer in _layers(_blocks(network, inside)):
        for name in PIECES[type(layer)]:
            layer.__dict__.pop(name, None)


def cold_start(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, ColdStart]:
    """Call something for the first time, and say how much longer that took than the second time."""
    begun = _now()
    function(*args, **kwargs)
    between = _now()
    result = function(*args, **kwargs)
    ended = _now()
    start = ColdStart(what=what, seconds=max((between - begun) - (ended - between), 0.0))
    logger.info("%s took %.1f s", start.what, start.seconds)
    return result, start


def _blocks(network: nn.Module, inside: str) -> nn.ModuleList:
    blocks = getattr(network, inside, None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ResourceError(f"{type(network).__name__} has no blocks in {inside!r} to compile")
    return blocks


def _layers(blocks: nn.ModuleList) -> list[nn.Module]:
    """List the layers that have pieces; not by iterating over blocks, which may bring them to the device."""
    return [layer for layer in blocks.modules() if type(layer) in PIECES]


def _num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _now() -> float:
    """Read the clock when a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
