"""What computes softmax(q k / sqrt(d) + bias) v: PyTorch's own kernels, or faster ones where installed.

| name | by | exact | for |
|---|---|---|---|
| sdpa | PyTorch, which chooses by device, shape and format | yes | everything |
| flash, cudnn, efficient, math | PyTorch, that kernel and no other | yes | flash and math also off the GPU |
| flash3, flash4 | FlashAttention, if installed | yes | Hopper; Hopper and Blackwell |
| sage | SageAttention, if installed: 8-bit scores | no | long sequences only, others go to sdpa |

"auto" takes the fastest exact one that a device has, never an approximate one. A bias reaches only kernels
that take one: where a backend does not, calls with a bias (masks, weights) go to PyTorch's other kernels.

Sources: Dao 2023, arXiv 2307.08691; Shah et al. 2024, arXiv 2407.08608; Zhang et al. 2024, arXiv 2410.02367.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from soundstage.core.errors import RequestError, ResourceError

Heads = Float[Tensor, "b heads n d"]
OtherHeads = Float[Tensor, "b heads s d"]
Bias = Float[Tensor, "#b #heads #n #s"] | None

HALVES = (torch.bfloat16, torch.float16)
HOPPER, BLACKWELL = (9, 0), (10, 0)
SHORTEST_SAGE = 2048  # tokens on both sides below which 8-bit scores gain nothing and only cost precision
_NAMES = {backend.value: name.split("_")[0].lower() for name, backend in SDPBackend.__members__.items()}


@runtime_checkable
class AttentionBackend(Protocol):
    """One way to attend."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def exact(self) -> bool:
        """Tell whether only the order of sums differs from PyTorch's."""

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Say why it cannot run on a device in a number format; None if it can."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Mix values by attention, (b, heads, n, d)."""

    def ran(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> str:
        """Name the kernel that such a call runs."""


@dataclass(frozen=True)
class Sdpa:
    """PyTorch's attention; it chooses the kernel itself."""

    name: str = "sdpa"
    exact: bool = True

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:  # noqa: ARG002
        """Run anywhere."""
        return None

    def attend(self, q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> Heads:
        """Mix values by attention."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def ran(self, q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> str:
        """Ask PyTorch which kernel it chooses."""
        return _NAMES.get(int(torch._fused_sdp_choice(q, k, v, bias)), "unknown")


@dataclass(frozen=True)
class Products:
    """Attention as it is written, for training in bfloat16 on CPUs: all scores exist at once.

    Forwards and backwards together take a third of what PyTorch's fused kernel takes there.
    """

    name: str = "products"
    exact: bool = True

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:  # noqa: ARG002
        """Run anywhere."""
        return None

    def attend(self, q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> Heads:
        """Mix values by attention."""
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        scores = scores if bias is None else scores + bias
        mixed: Tensor = scores.softmax(-1) @ v
        return mixed

    def ran(self, q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> str:  # noqa: ARG002
        """Name it."""
        return self.name


@dataclass(frozen=True)
class SdpaKernel:
    """One kernel of PyTorch's, and no other.

    Raises:
        ResourceError: When it attends: the kernel cannot take the call.
    """

    name: str
    kernel: SDPBackend
    takes_bias: bool = True
    only_halves: bool = False
    needs_gpu: bool = True
    fewest_keys: int = 1  # calls with fewer go to PyTorch's choice
    exact: bool = True

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Say why it cannot run on a device in a number format."""
        if device.type != "cuda":
            return f"it needs a GPU and the device is {device.type}" if self.needs_gpu else None
        if self.only_halves and dtype not in HALVES:
            return f"it takes bfloat16 and float16 and the weights are {str(dtype).removeprefix('torch.')}"
        return None

    def attend(self, q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> Heads:
        """Mix values by attention."""
        if not self._takes(q, k, bias):
            return _attend_otherwise(q, k, v, bias)
        try:
            with sdpa_kernel(self.kernel):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        except RuntimeError as error:
            if "backend" not in str(error) and "kernel" not in str(error):
                raise
            raise ResourceError(
                f"attention {self.name!r} cannot take queries of {tuple(q.shape)} in {q.dtype} on {q.device}"
                "; use 'sdpa', which takes any"
            ) from error

    def ran(self, q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> str:
        """Name the kernel: this one, or the one for calls that it does not take."""
        if self._takes(q, k, bias):
            return self.name
        with sdpa_kernel(_FOR_OTHERS, set_priority=True):
            return Sdpa().ran(q, k, v, bias)

    def _takes(self, q: Tensor, k: Tensor, bias: Tensor | None) -> bool:
        return not q.is_cuda or (k.shape[-2] >= self.fewest_keys and (bias is None or self.takes_bias))


@dataclass(frozen=True)
class Installed:
    """Attention of a package that is not part of PyTorch; calls that it is not made for go to PyTorch's."""

    name: str
    title: str
    modules: tuple[str, ...]  # where its function may be, in order
    function: str
    least: tuple[int, int]  # CUDA capability
    below: tuple[int, int]  # the first capability that is too new
    token_major: bool  # takes (b, n, heads, d)
    exact: bool = True
    shortest: int = 0  # tokens, on both sides
    call: Callable[..., Any] | None = None  # its function, once `loaded`

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Say why it cannot run on a device in a number format."""
        if self.module() is None:
            return f"{self.title} is not installed (no module {self.modules[0]})"
        if device.type != "cuda":
            return f"it needs a GPU and the device is {device.type}"
        capability = torch.cuda.get_device_capability(device)
        if not self.least <= capability < self.below:
            return f"{self.title} is not made for compute capability {capability[0]}.{capability[1]}"
        if dtype not in HALVES:
            return f"it takes bfloat16 and float16 and the weights are {str(dtype).removeprefix('torch.')}"
        try:
            self.loaded()
        except (ImportError, OSError, AttributeError, RuntimeError) as error:  # made for another PyTorch, say
            return f"{self.title} is installed but cannot be used ({error})"
        return None

    def module(self) -> str | None:
        """Find the module that holds its function."""
        return next((name for name in self.modules if _is_installed(name)), None)

    def attend(self, q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> Heads:
        """Mix values by attention."""
        if not self._takes(q, k, bias):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        function = self.loaded().call
        assert function is not None
        if self.token_major:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = function(q, k, v)
        out: Tensor = mixed[0] if isinstance(mixed, tuple) else mixed  # some versions add the scores' norms
        return out.transpose(1, 2) if self.token_major else out

    def loaded(self) -> "Installed":
        """Look its function up, once for all calls."""
        if self.call is not None:
            return self
        module = self.module()
        assert module is not None
        return replace(self, call=getattr(importlib.import_module(module), self.function))

    def ran(self, q: Heads, k: OtherHeads, v: OtherHeads, bias: Bias = None) -> str:
        """Name what runs: this package, or PyTorch's kernel for a call that it is not made for."""
        return self.name if self._takes(q, k, bias) else Sdpa().ran(q, k, v, bias)

    def _takes(self, q: Tensor, k: Tensor, bias: Tensor | None) -> bool:
        return (
            bias is None
            and q.dtype in HALVES
            and q.shape[-1] in (64, 128)
            and min(q.shape[-2], k.shape[-2]) >= self.shortest
            and not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad))
        )


SDPA = Sdpa()
PRODUCTS = Products()
ATTENTION: dict[str, AttentionBackend] = {
    "sdpa": SDPA,
    "flash": SdpaKernel(
        "flash", SDPBackend.FLASH_ATTENTION, takes_bias=False, only_halves=True, needs_gpu=False
    ),
    "cudnn": SdpaKernel("cudnn", SDPBackend.CUDNN_ATTENTION, only_halves=True, fewest_keys=2),
    "efficient": SdpaKernel("efficient", SDPBackend.EFFICIENT_ATTENTION),
    "math": SdpaKernel("math", SDPBackend.MATH, needs_gpu=False),
    "flash3": Installed(
        "flash3",
        "FlashAttention-3",
        ("flash_attn_interface", "flash_attn_3.flash_attn_interface"),
        "flash_attn_func",
        least=HOPPER,
        below=BLACKWELL,
        token_major=True,
    ),
    "flash4": Installed(
        "flash4",
        "FlashAttention-4",
        ("flash_attn.cute",),
        "flash_attn_func",
        least=HOPPER,
        below=(12, 0),
        token_major=True,
    ),
    "sage": Installed(
        "sage",
        "SageAttention",
        ("sageattention",),
        "sageattn",
        least=(8, 0),
        below=(13, 0),
        token_major=False,
        exact=False,
        shortest=SHORTEST_SAGE,
    ),
}
# What calls may run that the wanted kernel does not take, best first.
_FOR_OTHERS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """Choose how to attend; "auto" takes the fastest exact way.

    Raises:
        RequestError: There is no such backend, or it cannot run here; says why and which can.
    """
    if name == "auto":
        name = next(best for best in _best_first(device) if _can(best, device, dtype))
    if name not in ATTENTION:
        raise RequestError(f"attention {name!r} is not one of auto, {', '.join(ATTENTION)}")
    reason = ATTENTION[name].why_not(device, dtype)
    if reason is not None:
        able = [other for other in ATTENTION if _can(other, device, dtype)]
        raise RequestError(f"attention {name!r} cannot run: {reason}; here there is auto, {', '.join(able)}")
    backend = ATTENTION[name]
    return backend.loaded() if isinstance(backend, Installed) else backend


def use_attention(network: nn.Module, backend: AttentionBackend) -> int:
    """Make every attention layer of a network attend in this way; return how many there are."""
    layers = [module for module in network.modules() if hasattr(module, "attention_backend")]
    for layer in layers:
        setattr(layer, "attention_backend", backend)  # noqa: B010 (nn.Module's own are typed as tensors)
    return len(layers)


def _best_first(device: torch.device) -> tuple[str, ...]:
    """Order the exact backends by speed on a device; "sdpa" ends the list, because it always runs.

    Where cuDNN's kernel is the fastest of PyTorch's own, "sdpa" takes it for the calls that it can take.
    """
    if device.type != "cuda":
        return ("sdpa",)
    capability = torch.cuda.get_device_capability(device)
    if capability < HOPPER or capability >= (11, 0):
        return ("sdpa",)
    return ("flash3" if capability < BLACKWELL else "flash4", "sdpa")


def _can(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    return ATTENTION[name].why_not(device, dtype) is None


def _attend_otherwise(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    with sdpa_kernel(_FOR_OTHERS, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _is_installed(module: str) -> bool:
    """Tell whether a module can be found; of a submodule, its package is imported to look."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
