"""What the transformer takes beside its weights, from its shape and the way it computes.

A unit is one activation of all tokens of a row. These are the most of them that are alive at once:

| | 16 bits | 32 bits |
|---|---:|---:|
| steps between products: plain PyTorch on a CPU | 12 | 8 |
| plain PyTorch on a GPU, where a norm is one kernel | 10 | 8 |
| Triton's kernels | 6 | 6 |
| the same where heads have gates, whose logits are in one product with queries, keys and values | 7 | 6 |
| layers that are widened for use: from 8 bits, from fewer | 7, 10 | 7, 10 |
| 8-bit floats, inputs rounded by Triton's kernel | 8 | 11 |
| by plain PyTorch, or without units for such products | 29 | 13 |
| by a scale of the file, without such units | 15, 23 | 13 |
| 8-bit integers, multiplied as such | 23 | 10 |
| branches of LoRAs beside the layers | 14 | 14 |

The largest that applies counts. Source: counted at full size on the `meta` device, row by row; the tests hold
what is predicted within 15 % of that. Compiled blocks count as plain PyTorch, for what is fused is not known.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.core.types import AV
from soundstage.models.transformer.config import STREAMS, TransformerConfig
from soundstage.nn.gguf_formats import BLOCK_FORMATS
from soundstage.pipelines.adaptation import INPUT_SCALE, WEIGHT
from soundstage.pipelines.batching import activation_numbers
from soundstage.pipelines.kept_weights import Format
from soundstage.runtime.quantization.placing import FP8
from soundstage.runtime.quantization.registry import NONE

Layers = Literal["widened", "packed", "fp8", "fp8-fixed", "integers"]
Units = Mapping[int, float | int]  # by bytes per number

PLAIN_CPU: Units = {2: 12, 4: 8}
PLAIN_GPU: Units = {2: 10, 4: 8}
FUSED: Units = {2: 6, 4: 6}
FUSED_GATES: Units = {2: 7, 4: 6}
LAYERS: Mapping[Layers, Units] = {
    "widened": {2: 7, 4: 7},
    "packed": {2: 10, 4: 10},
    "fp8": {2: 29, 4: 13},
    "fp8-fixed": {2: 15, 4: 13},  # one scale for all inputs of a layer, as official files have it
    "integers": {2: 23, 4: 10},
}
FUSED_FP8: Units = {2: 8, 4: 11}
FIXED_WITHOUT_UNITS: Units = {2: 23, 4: 13}
BRANCHES = 14
WIDENING = 6  # while the largest weight is widened, which is not where most else is
WAITING = 1  # per row that another one is at work for
CACHE = 4  # per pass: what the step cache keeps, and what it compares
TEXTS = 2  # of a text's width, for what one block makes of each text
# Read and written per block between products and attention: without and with gates per head.
# Source: counted by benchmarks/traffic.py.
FUSED_TRAFFIC, PLAIN_TRAFFIC = (33, 39), (82, 89)

OF_FORMAT: Mapping[str, Layers] = {
    "fp8": "fp8",
    "fp8-bf16": "widened",
    "int8": "widened",
    "int8-int8": "integers",
    "int4": "packed",
}


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How the transformer computes, as far as memory and time depend on it."""

    itemsize: int  # bytes per number of an activation
    is_gpu: bool = False
    is_fused: bool = False  # the steps between products are Triton's kernels
    has_fp8: bool = False  # the device multiplies 8-bit floats
    layers: frozenset[Layers] = frozenset()  # kinds there are beside exact ones
    has_branches: bool = False  # LoRAs are computed beside the layers

    def units(self, *, gated: bool) -> float | int:
        """Count the activations that are alive at once, of a row at work.

        Args:
            gated: Whether heads have gates.
        """
        plain = PLAIN_GPU if self.is_gpu else PLAIN_CPU
        steps = (FUSED_GATES if gated else FUSED) if self.is_fused else plain
        counts = [steps, *(self._of_layers(kind) for kind in self.layers)]
        return max(*(count[self.itemsize] for count in counts), BRANCHES if self.has_branches else 0)

    def traffic(self, *, gated: bool) -> int:
        """Count the activations that a block reads and writes between products and attention."""
        return (FUSED_TRAFFIC if self.is_fused else PLAIN_TRAFFIC)[gated]

    def _of_layers(self, kind: Layers) -> Units:
        if kind == "fp8" and self.is_fused and self.has_fp8:  # Triton's kernel needs the device's, too
            return FUSED_FP8
        return FIXED_WITHOUT_UNITS if kind == "fp8-fixed" and not self.has_fp8 else LAYERS[kind]


def kinds_of_layers(tensors: Mapping[str, StoredTensor], form: Format) -> frozenset[Layers]:
    """Find out in which ways the layers of a network multiply, beside exactly.

    Args:
        tensors: Those of the network, by name.
    """
    if form.quantize == NONE:
        return frozenset()
    kinds = set[Layers]()
    for name, tensor in tensors.items():
        if not form.codes(name, tensor):
            continue
        stored = tensor.entry.dtype
        if form.quantize is None:
            if stored == FP8 or stored in BLOCK_FORMATS:
                kinds.add("widened" if stored == FP8 else "packed")
            continue
        kind = OF_FORMAT[form.quantize]
        if kind == "fp8" and stored == FP8:  # a header known by heart does not say whether inputs have scales
            kinds.add("fp8-fixed")
            if name.removesuffix(WEIGHT) + INPUT_SCALE in tensors:
                continue
        kinds.add(kind)
    return frozenset(kinds)


def transformer_activations(
    config: TransformerConfig,
    tokens: AV[int],
    computing: Computing,
    *,
    num_rows: int = 1,
    rows_at_once: int = 1,
    num_texts: int = 1,
    text_length: int = 0,
    keep_texts: bool = False,
    has_step_cache: bool = False,
    widened: int = 0,
) -> int:
    """Bytes that the transformer needs beside its weights.

    Args:
        tokens: Of one row.
        num_rows: Guidance passes of a step, of all clips that are made together.
        rows_at_once: Those that a layer takes together; the others wait as tokens between blocks.
        num_texts: Texts that are read.
        text_length: Tokens of each.
        keep_texts: Keep what the blocks read of the texts, where the noise level does not change it.
        has_step_cache: Keep what blocks added, to leave them out in the next step.
        widened: Bytes of the largest weight that is stored in another form, while it is widened.
    """
    unit = activation_numbers(config, tokens) * computing.itemsize
    video, audio = tokens.video or 0, tokens.audio or 0
    tables = 4 * (video * (config.video.dim + config.audio.dim) + audio * 2 * config.audio.dim)
    streams = [name for name, count in zip(STREAMS, (video, audio), strict=True) if count]
    widths = sum(config.video.dim if name == "video" else config.audio.dim for name in streams)
    texts = num_texts * text_length * computing.itemsize
    kept = config.kept_per_text_token(streams) if keep_texts else 0
    fixed = tables + texts * (kept + TEXTS * widths) + CACHE * num_rows * unit * has_step_cache
    waiting = WAITING * (num_rows - rows_at_once) * unit
    at_work = unit * rows_at_once
    units = computing.units(gated=config.gated_attention)
    return int(fixed + waiting + max(units * at_work, WIDENING * at_work + widened if widened else 0))
