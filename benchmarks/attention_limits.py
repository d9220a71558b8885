"""What it costs to limit who attends to whom: cut up once per run, against multiplied out in every layer.

python benchmarks/attention_limits.py [--case NAME ...] [--rounds N] [--heads N] [--json FILE]

The plain way makes the bias of 1,024 queries at a time from row and column factors, in every layer of every
step. Both run in turns on the same random queries, keys and values in float32, one thread, processor seconds;
ratios are medians of pairs. "Limits alone" leaves the attention itself out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from soundstage.models.transformer.attention_weights import (
    FactoredAttentionWeights,
    StripBias,
    weights_to_bias,
)
from soundstage.nn.attention_backends import SDPA, AttentionBackend, Sdpa
from soundstage.nn.attention_parts import AttentionParts
from soundstage.pipelines.prompt_spans import PromptSpan
from soundstage.pipelines.text_conditioning import PromptSchedule

TILE = 1024  # queries, of the plain way
SPANS = (PromptSpan.of("0-2:a"), PromptSpan.of("2-4:b"))


def prompts(tokens_per_moment: int, moments: int, words: int, rate: float) -> FactoredAttentionWeights:
    """Make the weights of a base prompt and two that hold for two seconds, with slopes of half a second."""
    begins = torch.arange(moments).repeat_interleave(tokens_per_moment) / rate
    positions = torch.stack([begins, begins + 1 / rate], dim=-1)[None, None]
    return PromptSchedule(spans=SPANS, transition=0.5).weights(positions, words)


def references(target: int, *counts: int, strength: float | Tensor) -> FactoredAttentionWeights:
    """Make the weights of a clip and reference clips behind it, as `StreamState.attention_weights` does."""
    group = torch.tensor([0, *range(2, 2 + len(counts))]).repeat_interleave(torch.tensor([target, *counts]))
    is_target = (group == 0).float()
    strengths = torch.as_tensor(strength).expand(sum(counts))
    appended = torch.cat([torch.zeros(target), strengths])
    members = [(group == g).float() for g in range(2, 2 + len(counts))]
    rows, columns = [is_target, appended, *members], [is_target + appended, is_target, *members]
    return FactoredAttentionWeights(rows=torch.stack(rows)[None], columns=torch.stack(columns)[None])


CASES: dict[str, Callable[[], FactoredAttentionWeights]] = {
    "timed prompts, 14,080 video tokens": lambda: prompts(880, 16, 1024, 3.125),
    "timed prompts, 53,680 video tokens": lambda: prompts(880, 61, 1024, 3.125),
    "timed prompts, 126 audio tokens": lambda: prompts(1, 126, 1024, 25),
    "timed prompts, 500 audio tokens": lambda: prompts(1, 500, 1024, 25),
    "timed prompts, embedded model": lambda: prompts(16, 8, 32, 4),
    "reference, strength 0.5, 14,080 + 3,520": lambda: references(14080, 3520, strength=0.5),
    "reference, strength 1, 14,080 + 3,520": lambda: references(14080, 3520, strength=1.0),
    "two references, strength 1, 14,080 + 2 x 3,520": lambda: references(14080, 3520, 3520, strength=1.0),
    "reference, a strength per token, 14,080 + 3,520": lambda: references(
        14080, 3520, strength=torch.linspace(0, 1, 3520)
    ),
    "reference, strength 0.5, 1,024 + 256": lambda: references(1024, 256, strength=0.5),
    "reference, strength 0.5, embedded model": lambda: references(128, 32, strength=0.5),
}


class Nothing(Sdpa):
    """Stands in for attention, to time what is around it."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the queries."""
        return q


def plain(weights: FactoredAttentionWeights, backend: AttentionBackend, *qkv: Tensor) -> Tensor:
    """Multiply the bias out, a tile of queries at a time."""
    q, k, v = qkv
    strips = []
    for start in range(0, q.shape[-2], TILE):
        stop = min(start + TILE, q.shape[-2])
        bias = weights_to_bias(weights.weights(start, stop), q.dtype)
        strips.append(backend.attend(q[..., start:stop, :], k, v, bias))
    return torch.cat(strips, dim=-2)


def in_parts(parts: AttentionParts | None, backend: AttentionBackend, *qkv: Tensor) -> Tensor:
    """Attend part by part."""
    if parts is None:
        return backend.attend(*qkv)
    return torch.cat(list(parts.attend(backend, *qkv)), dim=-2)


def tensors(parts: AttentionParts | None) -> Iterator[Tensor]:
    """List what is held."""
    for part in () if parts is None else parts.parts:
        if isinstance(part.bias, StripBias):
            yield from (part.bias.factors.rows, part.bias.factors.columns, part.bias.kind_of)
        elif isinstance(part.bias, Tensor):
            yield part.bias


def seconds_of(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Run once; return processor seconds and the result."""
    begun = time.thread_time()
    result = run()
    return time.thread_time() - begun, result


@torch.inference_mode()
def measure(weights: FactoredAttentionWeights, heads: int, rounds: int) -> dict[str, float]:
    """Time both ways in turns, with and without attention itself."""
    made, _ = seconds_of(lambda: weights.parts(torch.float32) or torch.empty(0))  # type: ignore[arg-type,return-value]
    parts = weights.parts(torch.float32)
    n, m = weights.rows.shape[-1], weights.columns.shape[-1]
    q, k, v = (torch.randn(1, heads, count, 64) for count in (n, m, m))
    times: dict[str, list[float]] = {"plain": [], "parts": [], "plain alone": [], "parts alone": []}
    error = 0.0
    for _ in range(rounds):
        for suffix, backend in (("", SDPA), (" alone", Nothing())):
            first, reference = seconds_of(lambda: plain(weights, backend, q, k, v))  # noqa: B023
            second, result = seconds_of(lambda: in_parts(parts, backend, q, k, v))  # noqa: B023
            times["plain" + suffix].append(first)
            times["parts" + suffix].append(second)
            if not suffix:
                error = float((result - reference).abs().max() / reference.abs().max())
    report = {f"{name}, ms": 1e3 * statistics.median(some) for name, some in times.items()}
    pairs = zip(times["parts"], times["plain"], strict=True)
    report["ratio"] = statistics.median(a / b for a, b in pairs)
    report["calls, plain"] = -(-n // TILE)
    report["calls, parts"] = 1 if parts is None else len(parts.parts)
    report["calls without a bias"] = 1 if parts is None else sum(p.bias is None for p in parts.parts)
    report["bytes of a bias, plain"] = 4 * min(TILE, n) * m
    report["bytes held"] = sum(t.untyped_storage().nbytes() for t in tensors(parts))
    report["cut once, ms"] = 1e3 * made
    report["error"] = error
    return report


def main() -> None:
    """Print a table, and write it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="*", default=[], help="parts of names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", type=int, default=2, help="of 64")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report = {}
    for name, make in CASES.items():
        if not asked.case or any(part in name for part in asked.case):
            report[name] = measure(make(), asked.heads, asked.rounds)
            print(name, *(f"{key} {value:.4g}" for key, value in report[name].items()), sep="; ", flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
