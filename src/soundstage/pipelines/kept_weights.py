"""What weights take in memory, in the format that they are kept in."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.reading import TORCH_DTYPES, can_stay_on_disk
from soundstage.nn.gguf_formats import BLOCK_FORMATS
from soundstage.pipelines.adaptation import WEIGHT, is_codable
from soundstage.runtime.planning import Part
from soundstage.runtime.quantization.placing import FP8
from soundstage.runtime.quantization.registry import NONE, QUANTIZATIONS

PACKED_COPIES = 2.5  # of a weight of less than 8 bits: unpacked, scaled


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the weights of a network are kept."""

    itemsize: int  # bytes per number of what is not quantised
    inside: str = ""  # name of the list of blocks; empty where nothing is quantised
    quantize: str | None = None
    skipped: frozenset[str] = frozenset()  # layers

    def codes(self, name: str, tensor: StoredTensor) -> bool:
        """Tell whether a tensor is one of those that are quantised."""
        return is_codable(name, tensor, self.inside) and name.removesuffix(WEIGHT) not in self.skipped

    def fp8_share(self, tensors: Mapping[str, StoredTensor]) -> float:
        """Return what share of the matrices in the blocks is multiplied as 8-bit floats."""
        if self.quantize in (None, NONE) or not QUANTIZATIONS[self.quantize].multiplies:
            return 0.0
        sizes = {n: t.entry.num_elements for n, t in tensors.items() if is_codable(n, t, self.inside)}
        coded = sum(size for name, size in sizes.items() if self.codes(name, tensors[name]))
        return coded / sum(sizes.values()) if sizes else 0.0


def kept_bytes(tensor: StoredTensor, name: str, form: Format) -> float | int:
    """Size of one tensor in memory: in its format if it is quantised, else in the type of the weights."""
    entry, quantize = tensor.entry, form.quantize
    count = entry.num_elements
    is_coded = form.codes(name, tensor)
    if name.endswith((".weight_scale", ".input_scale")):
        return 0
    if is_coded and quantize is None and (entry.dtype == FP8 or entry.dtype in BLOCK_FORMATS):
        return entry.num_bytes + (4 * entry.shape[0] if entry.dtype == FP8 else 0)
    if is_coded and quantize not in (None, NONE):
        return count * QUANTIZATIONS[quantize].bits / 8
    return count * form.itemsize


@dataclass(frozen=True, kw_only=True)
class Branches:
    """What LoRAs take that are computed beside the layers of a network."""

    num_bytes: Mapping[str, int] = field(default_factory=dict)  # by layer, see `branch_bytes`
    fused: bool = False  # they are added into weights, and are beside those alone that are only read

    def always(self, name: str, tensor: StoredTensor, form: Format) -> int:
        """Bytes beside a weight, wherever it is."""
        if not self.num_bytes or not self.fused:
            return self.mapped(name)
        is_coded = form.quantize is None and tensor.entry.dtype in BLOCK_FORMATS
        return self.mapped(name) if is_coded and form.codes(name, tensor) else 0

    def mapped(self, name: str) -> int:
        """Bytes beside a weight that is read from disk."""
        if not self.num_bytes:
            return 0
        return self.num_bytes.get(name.removesuffix(WEIGHT), 0) if name.endswith(WEIGHT) else 0

    def act(self, tensors: Mapping[str, StoredTensor], form: Format, *, on_disk: bool) -> bool:
        """Tell whether any are computed beside weights, of a network whose blocks may stay on disk."""
        if not self.num_bytes or not self.fused:
            return bool(self.num_bytes)
        stored = {tensor.entry.dtype for tensor in tensors.values()}
        return on_disk or (form.quantize is None and not stored.isdisjoint(BLOCK_FORMATS))


NO_BRANCHES = Branches()


def part_of(
    name: str, tensors: Mapping[str, StoredTensor], form: Format, branches: Branches = NO_BRANCHES
) -> Part:
    """Sum up the tensors of a network, block by block, with what is beside them."""
    outer, copies, beside = 0.0, 0.0, 0
    blocks, mapped = defaultdict[int, float](float), defaultdict[int, float](float)
    number = re.compile(rf"{re.escape(form.inside)}\.(\d+)\.") if form.inside else None
    for local, tensor in tensors.items():
        size, always = kept_bytes(tensor, local, form), branches.always(local, tensor, form)
        copies += size if branches.mapped(local) and not always else 0
        found = number.match(local) if number is not None else None
        if found is None:
            outer += size + always
            continue
        blocks[int(found[1])] += size + always
        mapped[int(found[1])] += size + branches.mapped(local)
        beside += branches.mapped(local)
    return Part(
        name=name,
        outer=int(outer),
        blocks=tuple(int(blocks[i]) for i in sorted(blocks)),
        mapped=tuple(int(mapped[i]) for i in sorted(mapped)) if beside else (),
        beside=beside,
        copies=int(copies),
    )


def widened_bytes(tensors: Mapping[str, StoredTensor], form: Format) -> int:
    """Return the bytes that widening the largest weight of the blocks takes; 0 where none is."""
    if form.quantize not in (None, NONE) and QUANTIZATIONS[form.quantize].multiplies:
        return 0
    sizes = [
        int(tensor.entry.num_elements * form.itemsize * _copies(form, tensor))
        for name, tensor in tensors.items()
        if form.codes(name, tensor)
    ]
    return max(sizes, default=0)


def _copies(form: Format, tensor: StoredTensor) -> float | int:
    """Count the tensors of a weight's size that are there while it is widened."""
    if form.quantize == NONE:
        return 0
    if form.quantize is None:
        stored = tensor.entry.dtype
        return 1 if stored == FP8 else PACKED_COPIES if stored in BLOCK_FORMATS else 0
    return PACKED_COPIES if QUANTIZATIONS[form.quantize].bits < 8 else 1


def converted_bytes(tensors: Mapping[str, StoredTensor], form: Format, dtype: torch.dtype) -> int:
    """Return what blocks add on disk if they stay there in another form than the file's."""
    return int(
        sum(kept_bytes(t, name, form) for name, t in tensors.items() if _is_converted(form, name, t, dtype))
    )


def _is_converted(form: Format, name: str, tensor: StoredTensor, dtype: torch.dtype) -> bool:
    stored, wanted = tensor.entry.dtype, form.quantize
    if not (can_stay_on_disk(tensor) and name.startswith(f"{form.inside}.")):
        return False
    if form.codes(name, tensor) and wanted != NONE:
        if wanted is None and (stored == FP8 or stored in BLOCK_FORMATS):
            return False
        if wanted is not None:
            return not (stored == FP8 and wanted.startswith("fp8"))
    return TORCH_DTYPES.get(stored) != dtype
