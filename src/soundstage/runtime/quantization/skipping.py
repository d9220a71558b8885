"""Layers that stay exact while the others are quantised, named by patterns.

The official fp8 files leave four or five of the 48 blocks in bfloat16, the first and the last among them.

| pattern | layers |
|---|---|
| `transformer_blocks.0` | all of that block, and of no other: names are taken part by part |
| `transformer_blocks.0.attn1.to_q` | one |
| `*.ff` | all feed-forwards; `*`, `?` and `[0-3]` as in file names |
"""

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from soundstage.core.config import nearest
from soundstage.core.errors import RequestError


def skipped_layers(layers: Collection[str], patterns: Sequence[str], *, option: str) -> frozenset[str]:
    """Find the layers that patterns name.

    Args:
        layers: Names of all layers that could be quantised.
        option: What the patterns were given as, for errors.

    Raises:
        RequestError: A pattern names none of them; says what is nearest.
    """
    found: set[str] = set()
    for pattern in patterns:
        wanted = pattern.removesuffix(".weight").rstrip(".")
        named = {name for name in layers if fnmatchcase(name, wanted) or fnmatchcase(name, f"{wanted}.*")}
        if not named:
            raise RequestError(
                f"{option}={pattern!r} names no layer that is quantised{nearest(wanted, _places(layers))}"
            )
        found |= named
    return frozenset(found)


def _places(layers: Iterable[str]) -> list[str]:
    """List layers and all that they are part of."""
    places: dict[str, None] = {}
    for name in layers:
        parts = name.split(".")
        places.update((".".join(parts[:length]), None) for length in range(2, len(parts) + 1))
    return list(places)
