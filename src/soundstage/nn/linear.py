"""Linear layers by the shortest exact way: on the CPU through oneDNN, and several over one input as one.

Four things are chosen anew at every call, from what is there: nothing is kept beside the layers, so that a
layer may be replaced (by a twin with low-rank branches, by a quantised one) or moved at any time.

| what | when | else |
|---|---|---|
| oneDNN with its activation fused | CPU, float32, no gradient wanted | the layer itself |
| activated before it is rounded | GPU, 16 bits, a bias, no gradient wanted | activated afterwards |
| several layers as one product | weights side by side in one storage, which want no gradient | one by one |
| an input brought to 8 bits once for several layers | they round it alike | each for itself |
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MIN_ROWS = 16  # of a product that goes to oneDNN
MIN_PRODUCTS = 2**20  # multiply-adds of one
Activation = Literal["none", "gelu_tanh"]
_ATTRIBUTES: dict[Activation, tuple[str, str]] = {"none": ("none", ""), "gelu_tanh": ("gelu", "tanh")}


class RoundedInput(NamedTuple):
    """An input in the numbers that layers multiply it in."""

    exact: Float[Tensor, "... inputs"]
    codes: Float[Tensor, "rows inputs"]
    scale: Float[Tensor, "#rows 1"]


class RoundsInput(ABC):
    """A layer that may round its input before it multiplies; layers that round alike can share the work.

    If it does, calling it is `multiply(round_input(x))`.
    """

    @property
    @abstractmethod
    def rounds(self) -> bool:
        """Whether it does."""

    @abstractmethod
    def rounds_like(self, other: "RoundsInput") -> bool:
        """Tell whether another layer would round every input to the same numbers."""

    @abstractmethod
    def round_input(self, x: Float[Tensor, "... inputs"]) -> RoundedInput:
        """Round an input."""

    @abstractmethod
    def multiply(self, x: RoundedInput) -> Float[Tensor, "... outputs"]:
        """Multiply what was rounded."""


def project(
    layer: nn.Module, x: Float[Tensor, "... inputs"], activation: Activation = "none"
) -> Float[Tensor, "... outputs"]:
    """Apply a linear layer, or what stands in for one, and an activation."""
    if is_plain(layer):
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        return _linear(x, weight, bias, activation)
    out: Tensor = layer(x)
    if activation == "none":
        return out
    is_ours = isinstance(layer, RoundsInput) and not _is_hooked(layer)  # else somebody may hold the output
    return _gelu_over(out) if is_ours else F.gelu(out, approximate="tanh")


def project_together(
    layers: Sequence[nn.Module], x: Float[Tensor, "... inputs"]
) -> tuple[Float[Tensor, "... outputs"], ...]:
    """Apply layers of one input; as a single product where `join` laid their weights side by side.

    Layers that round their input alike have it rounded once.
    """
    if len(layers) == 1:
        return (project(layers[0], x),)
    joined = _joined(layers)
    if joined is None:
        return _one_by_one(layers, x)
    return _linear(x, joined.weight, joined.bias, "none").split_with_sizes(joined.widths, dim=-1)


def join(layers: Sequence[nn.Module]) -> bool:
    """Lay the weights of layers of one input side by side, so that `project_together` needs one product.

    The layers, their names and values stay as they are; writing into a weight still works. Copying a model or
    moving it to another device takes the weights apart again, which costs speed but nothing else.

    Returns:
        False: They cannot be joined, and nothing was done.
    """
    plain = [layer for layer in layers if is_plain(layer) and isinstance(layer, nn.Linear)]
    if len(plain) != len(layers) or len({layer.in_features for layer in plain}) > 1:
        return False
    if len({(layer.weight.dtype, layer.weight.device, layer.bias is None) for layer in plain}) > 1:
        return False
    if _joined(layers) is None:
        for name in ("weight", "bias"):
            parts = [layer._parameters[name] for layer in plain]
            _lay_side_by_side([part for part in parts if part is not None])
    return True


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is nothing but a weight and perhaps a bias, so that those may be used directly."""
    return (
        type(layer) is nn.Linear
        and type(layer._parameters.get("weight")) is nn.Parameter  # no tensor that stands for a quantised one
        and not _is_hooked(layer)
    )


def _one_by_one(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
    """Apply layers of one input, which is rounded anew only for those that do so in another way."""
    out: list[Tensor] = []
    rounder, rounded = None, None
    for layer in layers:
        if not (isinstance(layer, RoundsInput) and layer.rounds) or _is_hooked(layer):
            out.append(project(layer, x))
            continue
        if rounder is None or rounded is None or not layer.rounds_like(rounder):
            rounder, rounded = layer, layer.round_input(x)
        out.append(layer.multiply(rounded))
    return tuple(out)


def is_watched(layers: Sequence[nn.Module]) -> bool:
    """Tell whether somebody may hold what any of the layers gave out, so that it must not be changed."""
    return any(_is_hooked(layer) for layer in layers)


def _is_hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_pre_hooks or layer._forward_hooks)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    if _suits_onednn(x, weight):
        name, algorithm = _ATTRIBUTES[activation]
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)
        return fused
    if activation == "gelu_tanh" and bias is not None and _suits_epilogue(x, weight):
        # On a GPU this GELU is the tanh approximation; on a CPU it would not be.
        activated = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
        return activated.view(*x.shape[:-1], -1)
    out = F.linear(x, weight, bias)
    return _gelu_over(out) if activation == "gelu_tanh" else out


def _gelu_over(x: Tensor) -> Tensor:
    """Activate what nobody else holds: in its own memory where no gradient is wanted."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    activated: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return activated


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether oneDNN takes a product: up to twice as fast as the default library on AMD, measured.

    It needs about ten microseconds more to start, which small products do not make up for.
    """
    return (
        not torch.compiler.is_compiling()  # first: what else is asked would bind the graph to a size
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and x.numel() >= MIN_ROWS * weight.shape[1]
        and x.numel() * weight.shape[0] >= MIN_PRODUCTS
        and not torch.is_grad_enabled()
        and weight.is_contiguous()
        and _has_onednn()
    )


def _suits_epilogue(x: Tensor, weight: Tensor) -> bool:
    """Tell whether a product's library may activate what it has not rounded yet: one rounding for two."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and x.dtype == weight.dtype
        and x.dtype in (torch.bfloat16, torch.float16)
        and _is_on_gpu(x)
    )


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class _Joined(NamedTuple):
    """Layers of one input as a single one."""

    weight: Tensor
    bias: Tensor | None
    widths: list[int]  # of what each layer gives out


def _joined(layers: Sequence[nn.Module]) -> _Joined | None:
    """Return the weights and biases of layers as one, where they lie one behind the other."""
    if torch.compiler.is_compiling() or _want_gradients(layers):
        return None
    if not all(is_plain(layer) for layer in layers):
        return None
    weights = [layer._parameters["weight"] for layer in layers]
    weight = _as_one(weights)
    if weight is None:
        return None
    biases = [layer._parameters["bias"] for layer in layers]
    bias = _as_one(biases)
    if bias is None and any(one is not None for one in biases):
        return None
    return _Joined(weight, bias, [one.shape[0] for one in weights if one is not None])


def _as_one(parts: Sequence[Tensor | None]) -> Tensor | None:
    """View parts that follow each other in one storage as one tensor."""
    first = parts[0]
    if first is None:
        return None
    memory, place, rows = first.untyped_storage()._cdata, first.storage_offset(), 0
    dtype, inputs = first.dtype, first.shape[1:]
    for part in parts:
        if part is None or part.storage_offset() != place or part.untyped_storage()._cdata != memory:
            return None
        if part.dtype != dtype or part.shape[1:] != inputs or not part.is_contiguous():
            return None
        place += part.numel()
        rows += part.shape[0]
    return first.as_strided((rows, *inputs), first.stride())


@torch.no_grad()
def _lay_side_by_side(parts: Sequence[nn.Parameter]) -> None:
    """Move parameters into one storage."""
    if not parts:
        return
    whole = torch.cat([part.data for part in parts])
    for part, place in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
        part.data = place


def _want_gradients(layers: Sequence[nn.Module]) -> bool:
    """Tell whether weights are trained: a view over several would give all of the gradient to the first."""
    return torch.is_grad_enabled() and any(w.requires_grad for layer in layers for w in layer.parameters())
