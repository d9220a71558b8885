"""How to compute, as opposed to what: options of speed that leave a clip what it is; free of torch.

All but `attention="sage"` compute the same numbers up to rounding.
"""

from dataclasses import dataclass
from typing import Literal

AttentionName = Literal["auto", "sdpa", "flash", "cudnn", "efficient", "math", "flash3", "flash4", "sage"]
KernelsName = Literal["auto", "triton", "torch"]
CompileName = Literal["off", "blocks", "graphs"]
ExchangeName = Literal["auto", "ulysses", "ring"]  # how several processes share the tokens of a pass


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the transformer computes on its device."""

    attention: AttentionName = "auto"  # what attends; auto takes the fastest exact way there is
    kernels: KernelsName = "auto"  # fused steps of a block: Triton's kernels, or plain PyTorch
    compile: CompileName = "off"  # blocks: torch.compile; graphs: CUDA graphs; both start more slowly
