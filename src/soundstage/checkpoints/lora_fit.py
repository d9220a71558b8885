"""Which models a LoRA fits, told by the names and shapes of the layers it adapts. No torch."""

from collections.abc import Iterable, Mapping

from soundstage.checkpoints.detect import GENERATIONS as ALL_GENERATIONS
from soundstage.checkpoints.generation import Generation
from soundstage.checkpoints.header import read_header
from soundstage.checkpoints.keymap import TRANSFORMER, sort_tensors
from soundstage.checkpoints.layer_table import GENERATIONS, Shape, released_layers
from soundstage.checkpoints.lora import LoraFile
from soundstage.checkpoints.releases import EMBEDDED, EMBEDDED_FILE
from soundstage.core.errors import CheckpointError

NAMES_SHOWN = 20

Shapes = Mapping[str, Shape]


class LoraMismatchError(CheckpointError):
    """A LoRA adapts layers that the model does not have; the full lists are attributes."""

    def __init__(
        self, lora: LoraFile, model: str, generation: Generation, layers: Shapes, text_layers: Shapes
    ) -> None:
        sides = ((lora.layers, layers), (lora.text_layers, text_layers))
        self.unmatched = tuple(
            layer.key for adapted, there in sides for name, layer in adapted.items() if name not in there
        )
        self.misshapen = {
            name: (layer.shape, there[name])  # (in the file, in the model)
            for adapted, there in sides
            for name, layer in adapted.items()
            if name in there and there[name] != layer.shape
        }
        self.unknown, self.broken, self.text_side = lora.unknown, lora.broken, lora.text_side
        groups = (
            _group("layers that the model does not have", self.unmatched),
            _group(
                "layers of another shape",
                [f"{n} {list(a)} instead of {list(b)}" for n, (a, b) in self.misshapen.items()],
            ),
            _group("keys that are not understood", self.unknown),
            _group("broken layers", self.broken),
            _group("keys for the text encoder, which is not adapted here", self.text_side),
        )
        verdict = _verdict(lora, generation)
        super().__init__(f"{lora.path} does not fit {model}{verdict}: " + "; ".join(filter(None, groups)))


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


def _verdict(lora: LoraFile, generation: Generation) -> str:
    names = made_for(lora)
    if not names or generation.name in names:
        return ""
    return f", which is {generation.title}: it is a LoRA for {titles(names)}"


def _group(title: str, entries: Iterable[str]) -> str:
    listed = list(entries)
    if not listed:
        return ""
    more = f" ... and {len(listed) - NAMES_SHOWN} more" if len(listed) > NAMES_SHOWN else ""
    return f"{len(listed)} {title}: {', '.join(listed[:NAMES_SHOWN])}{more}"
