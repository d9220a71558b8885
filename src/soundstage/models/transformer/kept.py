"""What stays the same over all steps of a run, computed when first asked for and kept.

A `Kept` belongs to whoever runs the network several times over the same texts and positions (a denoiser), and
is given to every call. Nothing is kept anywhere else, and with it goes all that it holds.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    value: T
    sources: tuple[object, ...]  # held, so that their identities are not given to others
    stamp: tuple[tuple[int, int], ...]


@dataclass
class Kept:
    """Values by name, each with the layers and tensors it was made of.

    A value is made anew when one of its layers was replaced or written into since, as LoRAs do; moving
    weights to another place and back does not count.
    """

    _entries: dict[Hashable, _Entry[object]] = field(default_factory=dict)

    def get(self, name: Hashable, sources: Iterable[object], make: Callable[[], T]) -> T:
        """Return what was kept, or make it.

        Args:
            name: What the value is, among all those made of these sources.
            sources: The layers and tensors it is made of; known by identity.
        """
        held = tuple(sources)
        key = (name, *(id(source) for source in held))
        entry, stamp = self._entries.get(key), _stamp(held)
        if entry is None or entry.stamp != stamp:
            entry = _Entry(make(), held, stamp)
            self._entries[key] = entry
        return entry.value  # type: ignore[return-value]  # of the type that the same name had before

    def clear(self) -> None:
        """Let go of everything."""
        self._entries.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors that are kept beside what they were made of."""
        tensors = [tensor for entry in self._entries.values() for tensor in _tensors(entry.value)]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(sizes.values())


def _stamp(sources: tuple[object, ...]) -> tuple[tuple[int, int], ...]:
    """Tell when the weights below the sources were last replaced or written into."""
    marks = []
    for source in sources:
        for tensor in _weights(source) if isinstance(source, nn.Module) else [source]:
            if isinstance(tensor, Tensor):
                marks.append((id(tensor), 0 if tensor.is_inference() else tensor._version))
    return tuple(marks)


def _weights(module: nn.Module) -> Iterable[object]:
    """List the tensors below a module; quantised layers have theirs as buffers."""
    for part in module.modules():
        yield from part._parameters.values()
        yield from part._buffers.values()


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
