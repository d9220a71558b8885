"""Say what a LoRA file is: ranks, alphas, targets, and the models it fits. No torch."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.checkpoints.keymap import STREAM_TITLES, stream_of
from soundstage.checkpoints.lora import LoraFile, LoraLayer, describe_lora
from soundstage.checkpoints.lora_fit import fitting, titles


@dataclass(frozen=True, kw_only=True)
class LoraSummary:
    """What `soundstage inspect` prints of a LoRA."""

    form: str  # how the keys are spelled
    num_layers: int  # of the transformer
    num_text_layers: int  # of the connectors between text encoder and transformer
    ranks: tuple[int, ...]
    alphas: tuple[
        float | None, ...
    ]  # None = not stated, which means the rank; empty = not all data are there
    has_magnitudes: bool  # DoRA
    targets: Mapping[str, Mapping[str, int]]  # stream → kind of layer → number of layers
    fits: tuple[str, ...]  # generations with all these layers, in these shapes
    reference_spatial: int | None  # IC-LoRA: how much smaller the reference clip is
    reference_temporal: int | None
    problems: tuple[str, ...]  # what keeps it from being used
    left_out: tuple[str, ...]  # what no model uses of it


def summarise_lora(checkpoint: Checkpoint) -> LoraSummary:
    """Describe an opened LoRA file.

    Raises:
        CheckpointError: It is of another method, or its metadata contradict themselves.
    """
    lora = describe_lora(checkpoint)
    layers, factors = lora.layers.values(), lora.reference
    return LoraSummary(
        form=lora.form,
        num_layers=len(lora.layers),
        num_text_layers=len(lora.text_layers),
        ranks=tuple(sorted({layer.rank for layer in layers})),
        alphas=_alphas(lora),
        has_magnitudes=any(layer.magnitude is not None for layer in layers),
        targets=_targets(lora.layers),
        fits=fitting(lora),
        reference_spatial=None if factors is None else factors.spatial,
        reference_temporal=None if factors is None else factors.temporal,
        problems=lora.broken,
        left_out=tuple(_left_out(lora)),
    )


def lora_lines(summary: LoraSummary) -> list[str]:
    """Write it for people, a line per fact."""
    ranks = " to ".join(dict.fromkeys(str(rank) for rank in (*summary.ranks[:1], *summary.ranks[-1:])))
    alphas = ", ".join("not stated (= rank)" if a is None else f"{a:g}" for a in summary.alphas)
    method = "DoRA" if summary.has_magnitudes else "LoRA"
    keys = f"keys as {summary.form} spells them"
    lines = [f"{method} of rank {ranks or '0'}, alpha {alphas or 'not readable'}, {keys}"]
    for stream, kinds in summary.targets.items():
        listed = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        lines.append(f"{STREAM_TITLES[stream]}: {sum(kinds.values())} layers ({listed})")
    if summary.num_text_layers:
        lines.append(f"text connectors: {summary.num_text_layers} layers")
    fits = titles(summary.fits) or "no known model in these shapes"
    lines.append(f"fits: {fits}")
    if summary.reference_spatial is not None:
        lines.append(
            f"reference clip: {summary.reference_spatial} times smaller, "
            f"every frame {summary.reference_temporal}"
        )
    lines += [f"cannot be used: {problem}" for problem in summary.problems]
    return lines + [f"left out: {keys}" for keys in summary.left_out]


def _alphas(lora: LoraFile) -> tuple[float | None, ...]:
    found = {layer.alpha for layer in lora.layers.values()}
    readable = [alpha for alpha in found if alpha is None or not math.isnan(alpha)]
    return tuple(sorted(readable, key=lambda alpha: -1.0 if alpha is None else alpha))


def _targets(layers: Mapping[str, LoraLayer]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {"video": Counter(), "audio": Counter(), "cross": Counter()}
    for name in layers:
        path = name.split(".")
        kind = path[2] if path[0] == "transformer_blocks" and len(path) > 2 else path[0]
        counts[stream_of(name)][kind] += 1
    return {stream: dict(kinds) for stream, kinds in counts.items() if kinds}


def _left_out(lora: LoraFile) -> Iterator[str]:
    for title, keys in (
        ("are for the text encoder, which is not adapted here", lora.text_side),
        ("are not understood", lora.unknown),
    ):
        if keys:
            yield f"{len(keys)} keys {title}, such as {keys[0]}"
