"""Which models a LoRA fits, told by the names and shapes of the layers it adapts. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from soundstage.checkpoints.detect import GENERATIONS as ALL_GENERATIONS
from soundstage.checkpoints.generation import Generation
from soundstage.checkpoints.header import read_header
from soundstage.checkpoints.keymap import TRANSFORMER, sort_tensors
from soundstage.checkpoints.layer_table import GENERATIONS, Shape, released_layers
from soundstage.checkpoints.lora import LoraFile
from soundstage.checkpoints.releases import EMBEDDED, EMBEDDED_FILE
from soundstage.core.errors import CheckpointError

NAMES_SHOWN = 20  # of each kind in an error
NAMES_NOTED = 3  # in a note
MOST = 0.9  # of a LoRA; where less of it fits, it is hardly one for the model
KEYS_PER_LAYER = 2  # to count keys that belong to no layer

Shapes = Mapping[str, Shape]


class LoraMismatchError(CheckpointError):
    """A LoRA adapts layers that the model does not have; the full lists are attributes."""

    def __init__(
        self, lora: LoraFile, model: str, generation: Generation, layers: Shapes, text_layers: Shapes
    ) -> None:
        found = _compare(lora, layers, text_layers)
        self.unmatched, self.misshapen = found.unmatched, found.misshapen
        self.unknown, self.broken, self.text_side = lora.unknown, lora.broken, lora.text_side
        verdict = _verdict(lora, generation, f", which is {generation.title}: ")
        super().__init__(f"{lora.path} does not fit {model}{verdict}: {_listed(lora, found, NAMES_SHOWN)}")


@dataclass(frozen=True)
class FittingPart:
    """What of a LoRA a model has layers for."""

    file: LoraFile  # with these layers alone
    note: str = ""  # says what is left out; empty where that is nothing


class _Comparison(NamedTuple):
    unmatched: tuple[str, ...]  # as the file calls them
    misshapen: Mapping[str, tuple[Shape, Shape]]  # layer → shapes in the file and in the model


def check_fit(
    lora: LoraFile, layers: Shapes, *, model: str, generation: Generation, text_layers: Shapes | None = None
) -> None:
    """Make sure that every key of a LoRA finds its layer.

    Args:
        layers: The linear layers of the model's transformer.
        text_layers: Those of the connectors between text encoder and transformer; none if not given.
        model: Names the model in errors.

    Raises:
        LoraMismatchError: Some do not; says which, and of which generation the LoRA is.
    """
    connectors = text_layers or {}
    fits = all(layers.get(name) == shape for name, shape in lora.shapes.items())
    fits = fits and all(connectors.get(name) == shape for name, shape in lora.text_shapes.items())
    if not fits or lora.unknown or lora.broken or lora.text_side or not lora.layers:
        raise LoraMismatchError(lora, model, generation, layers, connectors)


def fitting_part(
    lora: LoraFile, layers: Shapes, *, model: str, generation: Generation, text_layers: Shapes | None = None
) -> FittingPart:
    """Take of a LoRA what finds its layer, and say what does not.

    Args:
        layers: As for `check_fit`, like the rest.

    Raises:
        LoraMismatchError: Nothing of it finds a layer of the transformer, or the file is broken.
    """
    connectors = text_layers or {}
    used = {name: layer for name, layer in lora.layers.items() if layers.get(name) == layer.shape}
    text = {name: layer for name, layer in lora.text_layers.items() if connectors.get(name) == layer.shape}
    if lora.broken or not used:
        raise LoraMismatchError(lora, model, generation, layers, connectors)
    there, count = len(lora.layers) + len(lora.text_layers), len(used) + len(text)
    other = len(lora.unknown) + len(lora.text_side)
    if count == there and not other:
        return FittingPart(lora)
    left_out = _listed(lora, _compare(lora, layers, connectors), NAMES_NOTED)
    verdict = _verdict(lora, generation, "; ")
    little = ", so that little may come of it" if count < MOST * (there + other / KEYS_PER_LAYER) else ""
    note = f"{lora.path} fits {model} in part: {count} of its {there} layers are used{little}{verdict}"
    return FittingPart(replace(lora, layers=used, text_layers=text), f"{note}; left out: {left_out}")


def made_for(lora: LoraFile) -> tuple[str, ...]:
    """Name the known models that a LoRA can be for: as it states itself, or as its layers tell.

    Attention and feed-forward are the same in all released generations, so that there may be several.
    """
    if lora.stated_generation is not None:
        return (lora.stated_generation,)
    alike = tuple(name for name in GENERATIONS if _resembles(released_layers(name), lora.shapes))
    return fitting(lora) or alike


def fitting(lora: LoraFile) -> tuple[str, ...]:
    """Name the known models that have all the layers of a LoRA, in its shapes."""
    fits = [name for name in GENERATIONS if _includes(released_layers(name), lora.shapes)]
    if _includes(embedded_layers(), lora.shapes):
        fits.append(EMBEDDED)
    return (lora.stated_generation,) if lora.stated_generation in fits else tuple(fits)


def titles(names: Iterable[str]) -> str:
    """Write generations for people: "LTX-2.3 or LTX-2.5"."""
    return " or ".join(ALL_GENERATIONS[name].title for name in names)


def embedded_layers() -> Shapes:
    """List the linear layers of the embedded model; none where its file is missing."""
    if not EMBEDDED_FILE.is_file():
        return {}
    header = read_header(EMBEDDED_FILE)
    named = sort_tensors(header).parts.get(TRANSFORMER, {})
    shapes = {local.removesuffix(".weight"): header.tensors[n].shape for local, n in named.items()}
    return {layer: (shape[0], shape[1]) for layer, shape in shapes.items() if len(shape) == 2}


def _includes(layers: Shapes, wanted: Shapes) -> bool:
    return bool(wanted) and all(layers.get(name) == shape for name, shape in wanted.items())


def _resembles(layers: Shapes, wanted: Shapes) -> bool:
    """Compare what does not depend on widths: the names, and the rows per width of the modulation."""
    return bool(wanted) and all(
        name in layers and (not name.endswith("adaln_single.linear") or _rows(layers[name]) == _rows(shape))
        for name, shape in wanted.items()
    )


def _rows(shape: Shape) -> float:
    return shape[0] / shape[1]


def _verdict(lora: LoraFile, generation: Generation, before: str) -> str:
    names = made_for(lora)
    if not names or generation.name in names:
        return ""
    return f"{before}it is a LoRA for {titles(names)}"


def _compare(lora: LoraFile, layers: Shapes, text_layers: Shapes) -> _Comparison:
    sides = ((lora.layers, layers), (lora.text_layers, text_layers))
    unmatched = tuple(
        layer.key for adapted, there in sides for name, layer in adapted.items() if name not in there
    )
    misshapen = {
        name: (layer.shape, there[name])
        for adapted, there in sides
        for name, layer in adapted.items()
        if name in there and there[name] != layer.shape
    }
    return _Comparison(unmatched, misshapen)


def _listed(lora: LoraFile, found: _Comparison, most: int) -> str:
    """Name what does not fit, the first of each kind."""
    shapes = [f"{n} {list(a)} instead of {list(b)}" for n, (a, b) in found.misshapen.items()]
    groups = (
        _group("layers that the model does not have", found.unmatched, most),
        _group("layers of another shape", shapes, most),
        _group("keys that are not understood", lora.unknown, most),
        _group("broken layers", lora.broken, most),
        _group("keys for the text encoder, which is not adapted here", lora.text_side, most),
    )
    return "; ".join(filter(None, groups))


def _group(title: str, entries: Sequence[str], most: int) -> str:
    if not entries:
        return ""
    more = f" ... and {len(entries) - most} more" if len(entries) > most else ""
    return f"{len(entries)} {title}: {', '.join(entries[:most])}{more}"
