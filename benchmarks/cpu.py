"""Our networks against diffusers' on the CPU: the same weights, the same inputs, one thread, turn by turn.

python benchmarks/cpu.py [--config lite|mid|video_vae|vocoder ...] [--rounds N] [--clock cpu|wall]
                         [--json FILE]

A round runs every contestant once; ratios are medians over the rounds of the two times of one round, so that
a machine that is sometimes slower slows both. The clock counts the thread's own CPU seconds unless told
otherwise: on an idle machine that is the same, on a shared one others do not count.

| row | what is compared |
|---|---|
| forward / diffusers | one prediction within a run: texts and positions are known |
| forward, first / diffusers | the first one of a run, which computes what the others keep |
| products and attention / diffusers | of our forward, by PyTorch's default library: a floor without oneDNN |
| guided step / 4 forwards | four passes, shared as far as they are the same, against four of our forwards |
| guided step / diffusers | the same against prompt and negative prompt as a batch, then two more calls |

diffusers is given no text masks, and one noise level per item, as for text to video.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # conversion to diffusers' names lives there

from diffusers_pairs import call_transformer, transformer_pair, video_vae_pair, vocoder_pair
from four_passes import four_passes
from soundstage.core.types import AV
from soundstage.models.transformer.inputs import Passes, StreamInput, Text
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.modulation import NoiseLevels


@dataclass(frozen=True, kw_only=True)
class Size:
    """A transformer and its tokens."""

    layers: int
    heads: int
    video_tokens: int
    caption_channels: int  # as much narrower than the text encoder's 3840 as the video stream is
    rounds: int
    audio_tokens: int = 126
    text_tokens: int = 256


SIZES = {
    "tiny": Size(
        layers=2, heads=1, video_tokens=64, caption_channels=16, rounds=3, audio_tokens=16, text_tokens=8
    ),
    "lite": Size(layers=2, heads=4, video_tokens=1024, caption_channels=480, rounds=150),
    "mid": Size(layers=2, heads=8, video_tokens=1536, caption_channels=960, rounds=6),
}
VAE = {"video_vae": (2, 8, 10), "tiny_video_vae": (1, 2, 2)}  # latent frames, rows, columns
VOCODER = {"vocoder": 125, "tiny_vocoder": 4}  # mel frames
PART_ROUNDS = 15
CHANNELS = 128
VAE_CHANNELS = 8
NO_OUTPUT = -1.0  # nothing to compare


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    config: str
    row: str
    seconds: float  # median
    against: float  # median, seconds
    ratio: float  # median of the ratios of each round
    rounds: int
    difference: float  # largest, relative to the largest value


Run = Callable[[], Sequence[Tensor]]


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    clock = time.thread_time if options.clock == "cpu" else time.perf_counter
    lines: list[Line] = []
    began = time.perf_counter()
    with torch.inference_mode():
        for config in options.config:
            rounds = options.rounds or (SIZES[config].rounds if config in SIZES else PART_ROUNDS)
            lines += measure(config, rounds, clock)
    print(f"{_machine()}; torch {torch.__version__}, 1 thread, {options.clock} clock; commit {_commit()}")
    print(f"{time.perf_counter() - began:.0f} s\n")
    print("| config | row | ours, ms | against, ms | ratio | rounds | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        difference = "" if line.difference == NO_OUTPUT else f"{line.difference:.1e}"
        print(
            f"| {line.config} | {line.row} | {1e3 * line.seconds:.1f} | {1e3 * line.against:.1f} "
            f"| {line.ratio:.3f} | {line.rounds} | {difference} |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))


def measure(config: str, rounds: int, clock: Callable[[], float] = time.thread_time) -> list[Line]:
    """Measure everything about one configuration."""
    if config in SIZES:
        return _transformer(config, SIZES[config], rounds, clock)
    pair = _video_vae(VAE[config]) if config in VAE else _vocoder(VOCODER[config])
    ours, theirs = pair
    times = _take_turns({"ours": ours, "theirs": theirs}, rounds, clock)
    return [_line(config, "decode", times, "ours", "theirs", _difference(ours(), theirs()))]


def _transformer(config: str, size: Size, rounds: int, clock: Callable[[], float]) -> list[Line]:
    ours, theirs = transformer_pair(
        _header(size), "2.0", std=0.6 / (128 * size.heads) ** 0.5, caption_channels=size.caption_channels
    )
    ours.join_projections()
    video, audio = _inputs(size)
    forward, first, guided = _ours(ours, video, audio)
    stg = {"spatio_temporal_guidance_blocks": [size.layers - 1]}
    both = [_twice(stream) for stream in (video, audio)]

    def their_guided() -> list[Tensor]:
        pair = call_transformer(theirs, *both, one_level=True)
        others = [
            call_transformer(theirs, video, audio, one_level=True, **change)
            for change in (stg, {"isolate_modalities": True})
        ]
        return [torch.cat([part[i] for part in (pair, *others)]) for i in range(2)]

    runs: dict[str, Run] = {
        "forward": forward,
        "theirs": lambda: call_transformer(theirs, video, audio, one_level=True),
        "first": first,
        "floor": _products(forward),
    }
    times = _take_turns(runs, rounds, clock)
    few = _take_turns(
        {"forward": forward, "guided": guided, "theirs": their_guided}, max(rounds // 10, 2), clock
    )
    few["four"] = [4 * seconds for seconds in few["forward"]]
    alone = _difference(forward(), runs["theirs"]())
    guidance = _difference(guided(), their_guided())
    return [
        _line(config, "forward / diffusers", times, "forward", "theirs", alone),
        _line(config, "forward, first / diffusers", times, "first", "theirs", alone),
        _line(config, "products and attention / diffusers", times, "floor", "theirs", NO_OUTPUT),
        _line(config, "guided step / 4 forwards", few, "guided", "four", NO_OUTPUT),
        _line(config, "guided step / diffusers", few, "guided", "theirs", guidance),
    ]


def _ours(model: AVTransformer, video: StreamInput, audio: StreamInput) -> tuple[Run, Run, Run]:
    """Return a forward within a run, the first of a run, and a guided step within a run."""
    ropes = model.prepare(video.positions, audio.positions)
    prompt = AV(Text(context=video.context), Text(context=audio.context))
    negative = AV(Text(context=-video.context), Text(context=-audio.context))
    branches = four_passes(prompt, negative, model.config.num_layers - 1)
    alone, together = Passes(branches=branches[1:2]), Passes(branches=branches, rows_at_once=1)

    def run(passes: Passes) -> Sequence[Tensor]:
        streams = [replace(s, levels=NoiseLevels.of_items(s.sigma)) for s in (video, audio)]
        velocities = model(*streams, ropes=ropes, passes=passes)
        return velocities.video, velocities.audio

    def first() -> Sequence[Tensor]:
        velocities = model(video, audio, passes=Passes(branches=branches[1:2]))
        return velocities.video, velocities.audio

    def guided() -> Sequence[Tensor]:
        order = [1, 0, 2, 3]  # as diffusers' passes
        return [velocity[order] for velocity in run(together)]

    return lambda: run(alone), first, guided


def _header(size: Size) -> dict[str, Any]:
    return {
        "num_attention_heads": size.heads,
        "attention_head_dim": 128,
        "cross_attention_dim": 128 * size.heads,
        "audio_num_attention_heads": size.heads,
        "audio_attention_head_dim": 64,
        "audio_cross_attention_dim": 64 * size.heads,
        "num_layers": size.layers,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "audio_in_channels": CHANNELS,
        "audio_out_channels": CHANNELS,
    }


def _inputs(size: Size) -> tuple[StreamInput, StreamInput]:
    torch.manual_seed(1)
    sigma, streams = torch.tensor([0.8]), []
    context = torch.randn(1, size.text_tokens, size.caption_channels)
    for count, axes in ((size.video_tokens, 3), (size.audio_tokens, 1)):
        starts = torch.rand(1, axes, count, 1) * torch.tensor([4.0, 300, 300])[:axes, None, None]
        streams.append(
            StreamInput(
                latents=torch.randn(1, count, CHANNELS),
                timesteps=sigma[:, None].expand(1, count),
                sigma=sigma,
                positions=torch.cat([starts, starts + 1], dim=-1),
                context=context.clone(),
            )
        )
    return streams[0], streams[1]


def _twice(stream: StreamInput) -> StreamInput:
    """Make a batch of the prompt and the negative prompt."""
    return replace(
        stream,
        latents=stream.latents.repeat(2, 1, 1),
        timesteps=stream.timesteps.repeat(2, 1),
        sigma=stream.sigma.repeat(2),
        positions=stream.positions.repeat(2, 1, 1, 1),
        context=torch.cat([stream.context, -stream.context]),
    )


def _video_vae(shape: tuple[int, int, int]) -> tuple[Run, Run]:
    up = ["compress_all", {"residual": True, "multiplier": 2}]
    blocks = [["res_x", 1], up, ["res_x", 1], up, ["res_x", 1], up, ["res_x", 1]]
    down = [[f"compress_{axis}_res", {"multiplier": 2}] for axis in ("space", "time", "all", "all")]
    res = ["res_x", 1]
    ours, theirs = video_vae_pair(
        {
            "latent_channels": VAE_CHANNELS,
            "encoder_base_channels": VAE_CHANNELS,
            "decoder_base_channels": 32,
            "encoder_blocks": [res, down[0], res, down[1], res, down[2], res, down[3], res],
            "decoder_blocks": blocks,
            "encoder_spatial_padding_mode": "zeros",
            "decoder_spatial_padding_mode": "reflect",
        },
        {
            "latent_channels": VAE_CHANNELS,
            "block_out_channels": (16, 32, 64, 128),
            "decoder_block_out_channels": (64, 128, 256),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "encoder_causal": True,
            "decoder_causal": False,
            "encoder_spatial_padding_mode": "zeros",
            "decoder_spatial_padding_mode": "reflect",
        },
    )
    latents = torch.randn(1, VAE_CHANNELS, *shape)
    return lambda: [ours.decode(latents)], lambda: [theirs.decode(latents).sample]


def _vocoder(frames: int) -> tuple[Run, Run]:
    ours, theirs = vocoder_pair(
        {
            "upsample_initial_channel": 256,
            "upsample_rates": (6, 5, 2, 2, 2),
            "upsample_kernel_sizes": (16, 15, 8, 4, 4),
            "resblock_kernel_sizes": (3, 7, 11),
            "resblock_dilation_sizes": ((1, 3, 5),) * 3,
            "num_mels": 64,
        }
    )
    mel = torch.randn(1, 2, frames, 64)
    return lambda: [ours(mel)], lambda: [theirs(mel)]


class _Recorder(TorchDispatchMode):
    """Notes the shapes of matrix products and attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "linear" in name or "addmm" in name or "scaled_dot_product" in name:
            self.calls.append((name, [arg.shape for arg in args if isinstance(arg, Tensor)]))
        return func(*args, **(kwargs or {}))


def _products(forward: Run) -> Run:
    """Return what runs the products and attentions of a forward and nothing else, by PyTorch's own choice."""
    with _Recorder() as recorder:
        forward()
    work: list[Callable[[], Tensor]] = []
    for name, shapes in recorder.calls:
        tensors = [torch.randn(shape) for shape in shapes]
        if "scaled_dot_product" in name:
            work.append(lambda t=tensors: F.scaled_dot_product_attention(*t[:3]))
        elif "addmm" in name:
            work.append(lambda t=tensors: torch.addmm(*t[:3]))
        else:
            work.append(lambda t=tensors: F.linear(*t[:3]))
    return lambda: [part() for part in work]


def _take_turns(runs: dict[str, Run], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Run everything once a round and return the seconds of each."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = clock()
            run()
            seconds[name].append(clock() - began)
    return seconds


def _line(
    config: str, row: str, times: dict[str, list[float]], ours: str, against: str, difference: float
) -> Line:
    ratios = [a / b for a, b in zip(times[ours], times[against], strict=True)]
    return Line(
        config,
        row,
        statistics.median(times[ours]),
        statistics.median(times[against]),
        statistics.median(ratios),
        len(ratios),
        difference,
    )


def _difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*SIZES, *VAE, *VOCODER]
    parser.add_argument("--config", nargs="+", choices=every, default=["lite", "mid", "video_vae", "vocoder"])
    parser.add_argument("--rounds", type=int, help="of each configuration, instead of its own number")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser.parse_args()


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return "unknown"
    return asked.stdout.strip() or "unknown"


def _machine() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
