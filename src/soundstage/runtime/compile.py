"""`torch.compile` for the blocks of a network, with the seconds that compiling took.

All blocks of a transformer are the same code, so the first one is compiled and the others reuse it; number of
tokens and batch are left open, so that another size reuses it too. Names and weights stay as they are.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from soundstage.core.errors import ResourceError

P = ParamSpec("P")
T = TypeVar("T")

VARIANTS = 64  # of one block's code: passes that part, sizes that need code of their own
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What was done once, and what it cost."""

    what: str
    seconds: float


def compile_blocks(
    network: nn.Module, *, inside: str = "transformer_blocks", backend: str = "inductor", dynamic: bool = True
) -> int:
    """Compile every block of a network, in place, when it is first called; return how many there are.

    Args:
        inside: Name of the list of blocks.
        dynamic: One code for all numbers of tokens; False makes faster code for each.

    Raises:
        ResourceError: The network has no such blocks.
    """
    blocks = getattr(network, inside, None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ResourceError(f"{type(network).__name__} has no blocks in {inside!r} to compile")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for block in blocks.children():  # not by iterating, which may bring blocks to the device
        block.compile(backend=backend, dynamic=dynamic)
    return len(blocks)


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


def _now() -> float:
    """Read the clock when a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
