"""Open a LoRA file from its header: which layers it adapts, how strongly, and which models it fits. No torch.

Tensors stay in the file until `soundstage.checkpoints.load_lora` reads them, layer by layer.
"""

import math
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from soundstage.checkpoints.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from soundstage.checkpoints.detect import detect_generation
from soundstage.checkpoints.keymap import LORA
from soundstage.checkpoints.layer_table import Shape, all_names
from soundstage.checkpoints.lora_keys import Role, connector_layer, is_text_side, parse_key, spellings_of
from soundstage.core.errors import CheckpointError

_SCALARS = {
    "F64": "<d",
    "F32": "<f",
    "F16": "<e",
    "I64": "<q",
    "I32": "<i",
    "I16": "<h",
    "I8": "<b",
    "U8": "<B",
}
_OTHER_METHODS = {".lokr_": "LoKr", ".hada_": "LoHa", ".oft_": "OFT"}


@dataclass(frozen=True, kw_only=True)
class LoraLayer:
    """What a file holds for one layer."""

    key: str  # what the file calls the layer
    down: StoredTensor  # (rank, inputs)
    up: StoredTensor  # (outputs, rank)
    magnitude: StoredTensor | None  # DoRA: (outputs) or (outputs, 1)
    alpha: float | None  # None = not stated, which means the rank
    rank_stabilised: bool = False  # divide by the root of the rank (rsLoRA, arXiv 2312.03732)

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return self.down.entry.shape[0]

    @property
    def shape(self) -> Shape:
        """Shape of the weight that is adapted: (outputs, inputs)."""
        return self.up.entry.shape[0], self.down.entry.shape[1]

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True, kw_only=True)
class ReferenceFactors:
    """How much smaller the reference clip of an IC-LoRA is than what is generated."""

    spatial: int = 1  # of width and height
    temporal: int = 1  # of the number of frames


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """One opened file."""

    path: Path
    metadata: Mapping[str, Any]
    form: str  # how its keys are spelled, see `lora_keys`
    layers: Mapping[str, LoraLayer]  # by official name
    text_layers: Mapping[str, LoraLayer] = field(default_factory=dict)  # of the connectors, by their names
    text_side: tuple[str, ...] = ()  # keys for the text encoder itself, which nothing is trained on
    unknown: tuple[str, ...] = ()  # keys that are not understood
    broken: tuple[str, ...] = ()  # layers whose tensors do not go together, and why

    @cached_property
    def reference(self) -> ReferenceFactors | None:
        """The reference factors that an IC-LoRA states; None if it states none.

        Raises:
            CheckpointError: A factor is not a positive integer, or two of them contradict each other.
        """
        spatial = {
            value
            for name in ("reference_downscale_factor", "reference_spatial_scale_factor")
            if (value := self._factor(name)) is not None
        }
        temporal = self._factor("reference_temporal_scale_factor")
        if len(spatial) > 1:
            raise CheckpointError(f"{self.path} states two spatial reference factors, {sorted(spatial)}")
        if not spatial and temporal is None:
            return None
        return ReferenceFactors(spatial=min(spatial, default=1), temporal=temporal or 1)

    @property
    def stated_generation(self) -> str | None:
        """Name of the generation in the metadata, which few files carry."""
        stated = "model_version" in self.metadata or "soundstage_model" in self.metadata
        return detect_generation(self.metadata).name if stated else None

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every layer of the transformer that is adapted."""
        return {name: layer.shape for name, layer in self.layers.items()}

    @property
    def text_shapes(self) -> dict[str, Shape]:
        """Shape of every layer of the connectors that is adapted."""
        return {name: layer.shape for name, layer in self.text_layers.items()}

    def _factor(self, name: str) -> int | None:
        given = self.metadata.get(name)
        if given is None:
            return None
        try:
            factor = float(given)
        except (TypeError, ValueError):
            factor = 0.0
        if factor < 1 or not factor.is_integer():
            raise CheckpointError(f"{self.path} states {name}={given!r}, which is not a positive integer")
        return int(factor)


def open_lora(path: Path, *, names: Collection[str] = (), require_data: bool = True) -> LoraFile:
    """Open a LoRA; nothing is read but its header and its alphas.

    Args:
        names: Linear layers of the model at hand, for keys that lost their dots; the released ones are known.

    Raises:
        CheckpointError: The file is missing, damaged, a pickle, or no LoRA.
    """
    return describe_lora(open_checkpoint(path, require_data=require_data), names=names)


def describe_lora(checkpoint: Checkpoint, *, names: Collection[str] = ()) -> LoraFile:
    """Sort the keys of an opened LoRA file by layer; see `open_lora`."""
    stored, path = checkpoint.part(LORA), checkpoint.headers[0].path
    _refuse_other_methods(path, stored)
    spellings = spellings_of([*all_names(), *names])
    roles: dict[str, dict[Role, StoredTensor]] = {}
    text_roles: dict[str, dict[Role, StoredTensor]] = {}
    forms: Counter[str] = Counter()
    text_side: list[str] = []
    unknown: list[str] = []
    broken: dict[str, str] = {}
    for name, tensor in stored.items():
        key = parse_key(name, spellings)
        connector = connector_layer(name)
        if key is None:
            (text_side if is_text_side(name) else unknown).append(name)
        elif is_text_side(name) and connector is None:
            text_side.append(name)
        else:
            forms[key.form] += key.role in ("down", "up")
            layer, kept = (key.layer, roles) if connector is None else (connector, text_roles)
            if key.role in kept.setdefault(layer, {}):
                broken[layer] = f"{layer} has two tensors for one purpose"
            kept[layer][key.role] = tensor
    sides = (*roles.items(), *text_roles.items())
    broken |= {layer: fault for layer, found in sides if (fault := _fault(layer, found))}
    alphas = _Alphas(path, checkpoint.metadata)
    return LoraFile(
        path=path,
        metadata=checkpoint.metadata,
        form=forms.most_common(1)[0][0] if forms else "",
        layers={name: alphas.layer(roles[name]) for name in roles if name not in broken},
        text_layers={name: alphas.layer(text_roles[name]) for name in text_roles if name not in broken},
        text_side=tuple(text_side),
        unknown=tuple(unknown),
        broken=tuple(broken.values()),
    )


def agreed_factors(loras: Iterable[LoraFile]) -> ReferenceFactors:
    """Return the reference factors of IC-LoRAs that are used together.

    Raises:
        CheckpointError: They differ; one reference clip cannot serve both.
    """
    stated = [(lora, lora.reference) for lora in loras if lora.reference is not None]
    for lora, factors in stated[1:]:
        if factors != stated[0][1]:
            raise CheckpointError(
                f"{stated[0][0].path} wants a reference clip {_said(stated[0][1])}, {lora.path} one "
                f"{_said(factors)}; use one of them"
            )
    return stated[0][1] if stated else ReferenceFactors()


def branch_bytes(loras: Iterable[LoraFile], itemsize: int) -> dict[str, int]:
    """Return what LoRAs take beside each layer, by its name, when they are computed live.

    Args:
        loras: Those that act at the same time.
        itemsize: Bytes per number of the weights, or of what they are quantised from.
    """
    numbers: Counter[str] = Counter()
    outputs: dict[str, int] = {}  # a number for each, of layers with a DoRA
    for lora in loras:
        for name, layer in lora.layers.items():
            numbers[name] += layer.rank * sum(layer.shape)
            if layer.magnitude is not None:
                outputs[name] = layer.shape[0]
    return {name: itemsize * (count + outputs.get(name, 0)) for name, count in numbers.items()}


def _said(factors: ReferenceFactors | None) -> str:
    assert factors is not None
    return f"{factors.spatial} times smaller with every frame {factors.temporal}"


def _refuse_other_methods(path: Path, names: Iterable[str]) -> None:
    for name in names:
        for mark, method in _OTHER_METHODS.items():
            if mark in name:
                raise CheckpointError(f"{path} is a {method} ({name}); soundstage reads LoRA and DoRA only")


def _fault(layer: str, found: Mapping[Role, StoredTensor]) -> str | None:
    """Say what is wrong with the tensors of one layer."""
    down, up, magnitude = found.get("down"), found.get("up"), found.get("magnitude")
    if down is None or up is None:
        return f"{layer} has no {'lora_A (down)' if down is None else 'lora_B (up)'}"
    shapes = down.entry.shape, up.entry.shape
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1]:
        return f"{layer} has factors of shapes {list(shapes[0])} and {list(shapes[1])}"
    outputs = shapes[1][0]
    if magnitude is not None and magnitude.entry.shape not in ((outputs,), (outputs, 1)):
        return f"{layer} has a magnitude of shape {list(magnitude.entry.shape)} for {outputs} outputs"
    return None


class _Alphas:
    """Finds out by what alpha a layer is scaled: its own tensor, the metadata, or not stated."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        adapter = metadata.get("lora_adapter_metadata")  # written by diffusers, keys with or without prefix
        self.adapter = adapter if isinstance(adapter, Mapping) else {}
        if self._of_adapter("alpha_pattern"):
            raise CheckpointError(
                f"{path} states its alphas as patterns (alpha_pattern), which soundstage does not read; "
                "convert it to a file with .alpha tensors"
            )
        self.stated = self._number(self._of_adapter("lora_alpha", metadata.get("lora_alpha")))
        self.rank_stabilised = bool(self._of_adapter("use_rslora"))

    def layer(self, found: Mapping[Role, StoredTensor]) -> LoraLayer:
        down, own = found["down"], found.get("alpha")
        return LoraLayer(
            key=down.name.partition(".lora")[0],
            down=down,
            up=found["up"],
            magnitude=found.get("magnitude"),
            alpha=self.stated if own is None else read_scalar(own),
            rank_stabilised=self.rank_stabilised and own is None,
        )

    def _of_adapter(self, name: str, otherwise: Any = None) -> Any:
        return self.adapter.get(f"transformer.{name}", self.adapter.get(name, otherwise))

    def _number(self, given: Any) -> float | None:
        if given is None:
            return None
        try:
            return float(given)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} states lora_alpha={given!r}, which is no number") from error


def read_scalar(tensor: StoredTensor) -> float:
    """Read a tensor of one number; NaN where the data are not all there.

    Raises:
        CheckpointError: It is no single number.
    """
    entry = tensor.entry
    if entry.num_elements != 1 or (entry.dtype != "BF16" and entry.dtype not in _SCALARS):
        raise CheckpointError(
            f"{tensor.path}: {tensor.name} should be one number, not {entry.dtype} {list(entry.shape)}"
        )
    with tensor.path.open("rb") as file:
        file.seek(entry.start)
        raw = file.read(entry.num_bytes)
    if len(raw) < entry.num_bytes:
        return math.nan
    if entry.dtype == "BF16":
        raw = b"\0\0" + raw  # the upper half of a float32
    return float(struct.unpack(_SCALARS.get(entry.dtype, "<f"), raw)[0])
