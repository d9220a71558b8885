"""Which implementation of the fused steps runs: Triton's kernels where they can, plain PyTorch elsewhere.

This is the only place that decides. A module that has fused steps keeps the set to use in `kernels`, plain
by default; `use_kernels` gives a whole network another one.
"""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.errors import RequestError
from soundstage.nn.kernels import plain
from soundstage.nn.kernels.lookup import PerToken, TokenRows, spread
from soundstage.nn.kernels.plain import NormRope, Quantised, ScaleShift
from soundstage.nn.rope import Rope

T = TypeVar("T")
logger = logging.getLogger(__name__)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8_CAPABILITY = (8, 9)  # first CUDA devices that convert to float8_e4m3fn (Ada; Hopper is 9.0)


@runtime_checkable
class Kernels(Protocol):
    """The fused steps; see `plain` for what each does."""

    @property
    def name(self) -> str:
        """What to call this set in reports."""

    def norm_modulate(self, x: Tensor, scale: PerToken, shift: PerToken, eps: float) -> Tensor:
        """Norm without weights, scale around one, shift."""

    def norm_modulate_twice(
        self, x: Tensor, first: ScaleShift, second: ScaleShift, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Norm without weights, scale and shift in two ways."""

    def norm_rope(self, x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
        """Norm with weights, rotate."""

    def norm_rope_both(
        self, queries: NormRope, keys: NormRope, eps: float, *, in_place: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Norm and rotate queries and keys; over themselves, if they may be."""

    def gate_heads(self, heard: Tensor, logits: Tensor) -> Tensor:
        """Scale heads by what their logits say."""

    def gate_add(self, x: Tensor, gate: PerToken, update: Tensor, *, in_place: bool = False) -> Tensor:
        """Add a gated update."""

    def quantise_rows(self, x: Tensor) -> Quantised:
        """Bring rows to 8 bits."""


@dataclass(frozen=True)
class TorchKernels:
    """Plain PyTorch, for every device and with gradients."""

    name: str = "torch"

    def norm_modulate(
        self,
        x: Float[Tensor, "b n d"],
        scale: PerToken,
        shift: PerToken,
        eps: float,
    ) -> Float[Tensor, "b n d"]:
        """Norm without weights, scale around one, shift."""
        return plain.norm_modulate(x, scale, shift, eps)

    def norm_modulate_twice(
        self, x: Float[Tensor, "b n d"], first: ScaleShift, second: ScaleShift, eps: float
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Norm without weights, scale and shift in two ways."""
        return plain.norm_modulate_twice(x, first, second, eps)

    def norm_rope(
        self, x: Float[Tensor, "b n d"], weight: Float[Tensor, " d"], rope: Rope, eps: float
    ) -> Float[Tensor, "b n d"]:
        """Norm with weights, rotate."""
        return plain.norm_rope(x, weight, rope, eps)

    def norm_rope_both(
        self, queries: NormRope, keys: NormRope, eps: float, *, in_place: bool = False
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b s d"]]:
        """Norm and rotate queries and keys; over themselves, if they may be."""
        return plain.norm_rope_both(queries, keys, eps, in_place=in_place)

    def gate_heads(
        self, heard: Float[Tensor, "b n d"], logits: Float[Tensor, "b n heads"]
    ) -> Float[Tensor, "b n d"]:
        """Scale heads by what their logits say."""
        return plain.gate_heads(heard, logits)

    def gate_add(
        self,
        x: Float[Tensor, "b n d"],
        gate: PerToken,
        update: Float[Tensor, "b n d"],
        *,
        in_place: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """Add a gated update."""
        return plain.gate_add(x, gate, update, in_place=in_place)

    def quantise_rows(self, x: Float[Tensor, "... d"]) -> Quantised:
        """Bring rows to 8 bits."""
        return plain.quantise_rows(x)


@dataclass(frozen=True)
class TritonKernels(TorchKernels):
    """Triton's kernels, call by call; plain PyTorch for a call that they are not made for.

    That is one off the GPU, one that gradients flow through, one under `torch.compile`, which fuses by
    itself, and one of several or of unusual number formats.
    """

    name: str = "triton"

    def norm_modulate(
        self,
        x: Float[Tensor, "b n d"],
        scale: PerToken,
        shift: PerToken,
        eps: float,
    ) -> Float[Tensor, "b n d"]:
        """Norm without weights, scale around one, shift."""
        if not _can_fuse(x, scale, shift):
            return plain.norm_modulate(x, scale, shift, eps)
        from soundstage.nn.kernels import fused

        return fused.norm_modulate(x, scale, shift, eps)

    def norm_modulate_twice(
        self, x: Float[Tensor, "b n d"], first: ScaleShift, second: ScaleShift, eps: float
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Norm without weights, scale and shift in two ways."""
        if not _can_fuse(x, *first, *second):
            return plain.norm_modulate_twice(x, first, second, eps)
        from soundstage.nn.kernels import fused

        return fused.norm_modulate_twice(x, first, second, eps)

    def norm_rope(
        self, x: Float[Tensor, "b n d"], weight: Float[Tensor, " d"], rope: Rope, eps: float
    ) -> Float[Tensor, "b n d"]:
        """Norm with weights, rotate."""
        if not _can_fuse(x):
            return plain.norm_rope(x, weight, rope, eps)
        from soundstage.nn.kernels import fused_attention

        return fused_attention.norm_rope(x, weight, rope, eps)

    def norm_rope_both(
        self, queries: NormRope, keys: NormRope, eps: float, *, in_place: bool = False
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b s d"]]:
        """Norm and rotate queries and keys; over themselves, if they may be."""
        if not _can_fuse(queries.x, keys.x):
            return plain.norm_rope_both(queries, keys, eps, in_place=in_place)
        from soundstage.nn.kernels import fused_attention

        return fused_attention.norm_rope_both(queries, keys, eps, in_place=in_place)

    def gate_heads(
        self, heard: Float[Tensor, "b n d"], logits: Float[Tensor, "b n heads"]
    ) -> Float[Tensor, "b n d"]:
        """Scale heads by what their logits say."""
        if not _can_fuse(heard, logits):
            return plain.gate_heads(heard, logits)
        from soundstage.nn.kernels import fused_attention

        return fused_attention.gate_heads(heard, logits)

    def gate_add(
        self,
        x: Float[Tensor, "b n d"],
        gate: PerToken,
        update: Float[Tensor, "b n d"],
        *,
        in_place: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """Add a gated update."""
        if not _can_fuse(x, gate, update):
            return plain.gate_add(x, gate, update, in_place=in_place)
        from soundstage.nn.kernels import fused

        return fused.gate_add(x, gate, update, in_place=in_place)

    def quantise_rows(self, x: Float[Tensor, "... d"]) -> Quantised:
        """Bring rows to 8 bits."""
        if not _can_fuse(x) or torch.cuda.get_device_capability(x.device) < FP8_CAPABILITY:
            return plain.quantise_rows(x)
        from soundstage.nn.kernels import fused

        return fused.quantise_rows(x)


@dataclass(frozen=True)
class InductorKernels(TorchKernels):
    """The plain steps, each compiled by torch.compile, for training: gradients flow through them.

    Without gradients they stay plain, which changes tensors in place and waits for no compiler. So it is no
    choice for generation, where `triton` or compiled blocks are.
    """

    name: str = "inductor"

    def norm_modulate(
        self,
        x: Float[Tensor, "b n d"],
        scale: PerToken,
        shift: PerToken,
        eps: float,
    ) -> Float[Tensor, "b n d"]:
        """Norm without weights, scale around one, shift."""
        step = _compiled(plain.norm_modulate) if torch.is_grad_enabled() else plain.norm_modulate
        return step(x, spread(scale), spread(shift), eps)

    def norm_modulate_twice(
        self, x: Float[Tensor, "b n d"], first: ScaleShift, second: ScaleShift, eps: float
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
        """Norm without weights, scale and shift in two ways."""
        step = _compiled(plain.norm_modulate_twice) if torch.is_grad_enabled() else plain.norm_modulate_twice
        return step(x, _spread_both(first), _spread_both(second), eps)

    def norm_rope(
        self, x: Float[Tensor, "b n d"], weight: Float[Tensor, " d"], rope: Rope, eps: float
    ) -> Float[Tensor, "b n d"]:
        """Norm with weights, rotate."""
        step = _compiled(plain.norm_rope) if torch.is_grad_enabled() else plain.norm_rope
        return step(x, weight, rope, eps)

    def norm_rope_both(
        self, queries: NormRope, keys: NormRope, eps: float, *, in_place: bool = False
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b s d"]]:
        """Norm and rotate queries and keys, one by one."""
        del in_place  # gradients need both
        return self.norm_rope(*queries, eps), self.norm_rope(*keys, eps)

    def gate_add(
        self,
        x: Float[Tensor, "b n d"],
        gate: PerToken,
        update: Float[Tensor, "b n d"],
        *,
        in_place: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """Add a gated update."""
        if in_place or not torch.is_grad_enabled():
            return plain.gate_add(x, gate, update, in_place=in_place)
        step: Callable[..., Tensor] = _compiled(plain.gate_add)
        return step(x, spread(gate), update)


def _spread_both(rows: ScaleShift) -> ScaleShift:
    return ScaleShift(spread(rows.scale), spread(rows.shift))


@cache
def _compiled(step: Callable[..., T]) -> Callable[..., T]:
    """Compile a step once, for all sizes."""
    return torch.compile(step, dynamic=True)


TORCH = TorchKernels()


def _choose_auto(device: torch.device) -> Kernels:
    reason = why_not_triton(device)
    if reason is None:
        return TritonKernels()
    if device.type == "cuda":
        logger.warning("plain PyTorch in place of Triton's kernels, which is slower: %s", reason)
    return TORCH


def _choose_triton(device: torch.device) -> Kernels:
    reason = why_not_triton(device)
    if reason is not None:
        raise RequestError(f"kernels 'triton' cannot run: {reason}; use 'torch', or 'auto' to let it choose")
    return TritonKernels()


def _choose_torch(_: torch.device) -> Kernels:
    return TORCH


KERNELS: dict[str, Callable[[torch.device], Kernels]] = {
    "auto": _choose_auto,
    "triton": _choose_triton,
    "torch": _choose_torch,
}


def choose_kernels(name: str, device: torch.device) -> Kernels:
    """Choose a set of fused steps for a device; "auto" takes Triton's where they can run.

    Raises:
        RequestError: There is no such set, or it cannot run here; says why.
    """
    if name not in KERNELS:
        raise RequestError(f"kernels {name!r} is not one of {', '.join(KERNELS)}")
    return KERNELS[name](device)


def why_not_triton(device: torch.device) -> str | None:
    """Say why Triton's kernels cannot run on a device; None if they can."""
    if device.type != "cuda":
        return f"the device is {device.type}, not a GPU"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    return _why_no_launch(device)


@cache
def _why_no_launch(device: torch.device) -> str | None:
    """Compile and start one small kernel, once per device; say why that failed, None if it did not.

    Triton may be installed and yet not run: it needs a C compiler, Python's headers and a GPU it knows.
    """
    try:
        from soundstage.nn.kernels import fused

        with torch.no_grad():
            one = torch.ones(1, 1, 16, device=device)
            two = fused.gate_add(one, one, one)
            is_right = bool((two == 2).all())
    except Exception as error:  # whatever a compiler, a driver or an import may raise
        first_line, *_ = str(error).strip().splitlines() or ["no reason given"]
        return f"Triton cannot start a kernel here ({type(error).__name__}: {first_line})"
    return None if is_right else "Triton's kernels compute wrong numbers here"


def use_kernels(network: nn.Module, kernels: Kernels) -> int:
    """Make every module of a network that has fused steps use this set; return how many there are."""
    users = [module for module in network.modules() if hasattr(module, "kernels")]
    for module in users:
        setattr(module, "kernels", kernels)  # noqa: B010 (nn.Module's own attributes are typed as tensors)
    return len(users)


def _can_fuse(x: Tensor, *others: PerToken) -> bool:
    """Tell whether Triton's kernels are made for a call."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _is_on_gpu(x):
        return False
    dtype = x.dtype
    return dtype in FLOATS and all(
        (other.table if isinstance(other, TokenRows) else other).dtype == dtype for other in others
    )


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda
