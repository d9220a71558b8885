"""The paper's design choices in small: the same training with one of them changed at a time.

    python benchmarks/ablations.py --video-vae FILE --audio-vae FILE --steps 900 --out runs/ablations
    python benchmarks/ablations.py ... --arms base ungated --seeds 0 1
    python benchmarks/ablations.py ... --arms base ungated --init src/soundstage/assets/embedded.safetensors

Every arm sees the same clips in the same order, starts from the same seed and takes as many steps. What
counts is the squared error of denoised tokens on held-out clips, where it depends on the choice:

| column | given | asked |
|---|---|---|
| video, audio | both streams noisy, alike | each |
| heard, seen | the other stream as it is | video by the sound (A2V), audio by the picture (V2A) |
| alone | both noisy, without attention between them | what that attention is worth |
| told | both noisy at sigma 0.97 | error without the caption minus error with it |

Networks that know nothing yet attend to nothing: from random weights, the attention between the streams is
worth nothing for thousands of steps. With `--init` an arm begins with a trained model in which that attention
alone, with its modulation and gates, is as at first.

An arm goes on where it was stopped; its figures are in `results.jsonl` of the output folder.
"""

import argparse
import json
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundstage.core.config import load_toml
from soundstage.models.text.connectors import ConnectorBlock, EmbeddingsConnector
from soundstage.models.transformer.block import TransformerBlock
from soundstage.models.transformer.inputs import Perturbation
from soundstage.models.transformer.modulation import Modulation
from soundstage.nn.norms import rms_norm
from soundstage.training.clips import ClipBatch, Pair
from soundstage.training.ema import EMA
from soundstage.training.loop import Trainer
from soundstage.training.recipe import Recipe
from soundstage.training.samples import HELD_OUT_SEED
from soundstage.training.tasks.transformer import ISOLATED, TransformerTask

RECIPE = Path(__file__).parents[1] / "recipes" / "transformer.toml"
SIGMAS = (0.5, 0.8, 0.92, 0.97)
BETWEEN = ("audio_to_video_attn", "video_to_audio_attn", "av_ca_", "scale_shift_table_a2v")  # the streams


@dataclass(frozen=True)
class Arm:
    """One training: what differs from the recipe, as overrides or as a change of the built networks."""

    what: str
    overrides: tuple[str, ...] = ()
    change: Callable[[TransformerTask], None] | None = None


def without_gates(task: TransformerTask) -> None:
    """Let the attention between the streams add what it says as it is, whatever the noise levels."""

    def side(block: TransformerBlock, stream: str, given: Any) -> Any:
        sides = TransformerBlock._side(block, stream, given)  # type: ignore[arg-type]
        ones = torch.ones_like(sides.gate.values[:1])
        return sides._replace(gate=Modulation(ones, None))

    for block in task.transformer.transformer_blocks:
        assert isinstance(block, TransformerBlock)
        block._side = types.MethodType(side, block)  # type: ignore[method-assign]
        for attention in (block.audio_to_video_attn, block.video_to_audio_attn):
            for parameter in attention.to_out.parameters():  # as silent at first as closed gates are
                torch.nn.init.zeros_(parameter)


def without_registers(task: TransformerTask) -> None:
    """Leave the places behind the words empty, and attend to words only."""
    words: dict[str, Tensor] = {}

    def attend(block: ConnectorBlock, x: Tensor, rope: Any) -> Tensor:
        bias = torch.zeros_like(words["mask"], dtype=x.dtype).masked_fill(~words["mask"], -1e4)
        x = x + block.attn1(rms_norm(x, 1e-6), rope=rope, bias=bias[:, None, None, :])
        out: Tensor = x + block.ff(rms_norm(x, 1e-6))
        return out

    def remember(_: Any, args: tuple[Any, ...]) -> None:
        count = args[1].bool().sum(1, keepdim=True).clamp(min=1)
        words["mask"] = torch.arange(task.max_length) < count

    def mask(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        video, audio, *rest = args
        masked = (replace(stream, context_mask=words["mask"].long()) for stream in (video, audio))
        return (*masked, *rest)

    connectors = task.text.connectors
    connectors.register_forward_pre_hook(remember)
    for connector in (connectors.video_embeddings_connector, connectors.audio_embeddings_connector):
        assert isinstance(connector, EmbeddingsConnector)
        for block in connector.transformer_1d_blocks:
            block.forward = types.MethodType(attend, block)
    task.transformer.register_forward_pre_hook(mask)


def with_last_layer_only(task: TransformerTask) -> None:
    """Read the text tower's last layer alone; the projection keeps its size."""

    def keep_last(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *rest = args
        kept = torch.zeros_like(states)
        kept[..., -1] = states[..., -1]
        return (kept, *rest)

    task.text.connectors.text_embedding_projection.register_forward_pre_hook(keep_last)


def widths(video_head: int, audio_head: int) -> tuple[str, ...]:
    """Set the streams' widths, four heads each."""
    video, audio = 4 * video_head, 4 * audio_head
    return (
        f"model.transformer.attention_head_dim={video_head}",
        f"model.transformer.connector_attention_head_dim={video_head}",
        f"model.transformer.cross_attention_dim={video}",
        f"model.transformer.audio_attention_head_dim={audio_head}",
        f"model.transformer.audio_connector_attention_head_dim={audio_head}",
        f"model.transformer.audio_cross_attention_dim={audio}",
    )


ARMS = {
    "base": Arm("the recipe"),
    "ungated": Arm("no gates on the attention between the streams", change=without_gates),
    "words only": Arm("no thinking tokens", change=without_registers),
    "last layer": Arm("text features of the last layer only", change=with_last_layer_only),
    "asymmetric": Arm("video 192, audio 112 wide: the paper's 2.8 to 1 in weights", widths(48, 28)),
    "symmetric": Arm("both streams 152 wide, as many weights in all", widths(38, 38)),
}


def build(arm: Arm, seed: int, args: argparse.Namespace) -> tuple[Recipe, TransformerTask]:
    """Build an arm's networks."""
    kinds = json.dumps(args.kinds)
    own = (
        f"num_steps={args.steps}",
        "budget_minutes=0.0",
        f"seed={seed}",
        f"validate_every={args.steps}",
        f'settings.video_vae="{args.video_vae}"',
        f'settings.audio_vae="{args.audio_vae}"',
        f"data.kinds={kinds}",
        *([f'init="{args.init}"'] if args.init else []),
    )
    recipe = load_toml(Recipe, RECIPE, [*own, *arm.overrides, *args.set])
    torch.manual_seed(seed)
    task = TransformerTask(recipe, torch.device("cpu"))
    if arm.change is not None:
        arm.change(task)
    return recipe, task


@torch.no_grad()
def measure(task: TransformerTask, clips: ClipBatch) -> dict[str, float]:
    """Average squared errors of denoised tokens over noise levels."""
    size = len(clips.captions)
    sums: dict[str, float] = {}

    def errors(
        sigmas: tuple[float, float], captions: list[str] | None = None, alone: bool = False
    ) -> tuple[float, float]:
        levels = Pair(*(torch.full((size,), sigma) for sigma in sigmas))
        got = task._errors(
            clips,
            clips.captions if captions is None else captions,
            levels,
            torch.Generator().manual_seed(0),
            perturbations=[ISOLATED if alone else Perturbation()] * size,
        )
        return sigmas[0] ** 2 * got.video.mean().item(), sigmas[1] ** 2 * got.audio.mean().item()

    def add(**figures: float) -> None:
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value / len(SIGMAS)

    for sigma in SIGMAS:
        video, audio = errors((sigma, sigma))
        alone = errors((sigma, sigma), alone=True)
        add(video=video, audio=audio, video_alone=alone[0], audio_alone=alone[1])
        add(video_heard=errors((sigma, 0.0))[0], audio_seen=errors((0.0, sigma))[1])
    told, untold = errors((0.97, 0.97)), errors((0.97, 0.97), captions=[""] * size)
    return sums | {"video_told": untold[0] - told[0], "audio_told": untold[1] - told[1]}


def main(argv: list[str] | None = None) -> int:
    """Train and measure the chosen arms, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--video-vae", type=Path, required=True, help="file of a trained video VAE")
    parser.add_argument("--audio-vae", type=Path, required=True, help="file of a trained audio VAE")
    parser.add_argument(
        "--init", type=Path, help="model to begin with, but for the attention between the streams"
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--clips", type=int, default=64, help="held-out clips")
    parser.add_argument("--kinds", nargs="*", default=["bounce"], help="kinds of scenes; none = all")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of every arm's recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    args = parser.parse_args(argv)
    results = args.out / "results.jsonl"
    known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    rows = []
    for seed in args.seeds:
        for name in args.arms:
            key = {"arm": name, "seed": seed, "steps": args.steps, "init": str(args.init or "")}
            found = next((row for row in known if key.items() <= row.items()), None)
            rows.append(found or _run(name, seed, args, key, results))
    print(_table(rows))
    return 0


def _run(
    name: str, seed: int, args: argparse.Namespace, key: dict[str, Any], results: Path
) -> dict[str, Any]:
    recipe, task = build(ARMS[name], seed, args)
    new = {key: t.clone() for key, t in task.transformer.state_dict().items() if _is_between(key)}
    trainer = Trainer(recipe, task, args.out / f"{name.replace(' ', '-')}-{seed}")
    if args.init:
        task.transformer.load_state_dict(new, strict=False)
        trainer.ema = EMA(trainer.product, recipe.optim.ema_decay)
    trainer.resume()
    trainer.run(on_log=lambda line: print(f"{name} {line}", file=sys.stderr))
    clips = task.clips.encode(HELD_OUT_SEED + 1, args.clips, "held_out")
    trainer.ema.swap(trainer.product)
    started = time.monotonic()
    figures = measure(task, clips)
    weights = sum(p.numel() for p in task.transformer.parameters())
    row = {**key, "weights": weights, "minutes": round(trainer.seconds / 60, 1), **figures}
    print(f"{name}: measured in {time.monotonic() - started:.0f} s", file=sys.stderr)
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def _is_between(name: str) -> bool:
    return any(part in name for part in BETWEEN)


def _table(rows: list[dict[str, Any]]) -> str:
    key_names = ("arm", "seed", "steps", "init")
    columns = [key for key in rows[0] if key not in (*key_names, "weights", "minutes")]
    lines = [
        "| arm | seed | weights | minutes | " + " | ".join(columns).replace("_", " ") + " |",
        "|---" * (4 + len(columns)) + "|",
    ]
    for row in rows:
        figures = " | ".join(f"{row[column]:.4f}" for column in columns)
        lines.append(
            f"| {row['arm']} | {row['seed']} | {row['weights'] / 1e6:.2f} M | {row['minutes']} | {figures} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
