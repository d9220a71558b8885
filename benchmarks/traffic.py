"""What the transformer does on a GPU, counted without one: kernels, bytes, products, memory.

python benchmarks/traffic.py                     # full size, 1280x704x121: half a minute; the table is last
python benchmarks/traffic.py --list triton-2.0   # and every kernel of a middle block, in order
python benchmarks/traffic.py --config tiny       # a few layers and tokens: shows that everything runs
python benchmarks/traffic.py --host 25           # and what the host does beside starting kernels, timed

Networks run on tensors without memory (`meta`), as if on a GPU, and every operation is counted:

- a kernel: an operation that is neither a view nor the making of an empty tensor; a call of a Triton kernel
  is one, whatever it stands for. PyTorch's attention and RMS norm are one each, as they are on a GPU.
- traffic: what kernels other than matrix products and attention read and write, every tensor once per kernel;
  what is broadcast is as large as it is stored. In units U of one (tokens, width) tensor of the picture.
- peak: the most bytes that are alive beside the weights, tables of positions included. Workspaces of
  libraries and what the allocator rounds up are not seen.

The estimate is a roofline: every kernel takes the longer of its operations at RATES and its bytes at
BANDWIDTH, one after the other; "with launches" adds LAUNCH per kernel. Nothing about it was measured by
running it. "first" is a forward that keeps nothing, "within" a step of a run, which finds what was kept of
the texts. diffusers is given one noise level per item and no text mask, as its fastest way.

"host" is the only thing timed: processor milliseconds of one thread for Python, views and the making of empty
tensors. Widths and tokens are tiny there, on the CPU, layers as many as released; products, attention and RMS
norm make an empty tensor, Triton's kernels are not started at all, and other operations run. A GPU adds what
starting its kernels takes. Medians of rounds in which all calls take turns.
"""

import argparse
import contextlib
import gc
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, library, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

sys.path.insert(
    0, str(Path(__file__).parents[1] / "tests")
)  # the counting of bytes that are alive lives there

from four_passes import four_passes
from live_bytes import LiveBytes
from soundstage.checkpoints.released import planned_configs
from soundstage.core.types import AV
from soundstage.models.transformer import ropes as tables_of_positions
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.inputs import Passes, StreamInput, Text
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.modulation import NoiseLevels
from soundstage.nn import linear
from soundstage.nn.kernels import choice
from soundstage.nn.kernels.choice import TORCH, TritonKernels, use_kernels

GIB = 2**30
# Of one H200: products in bfloat16 and device copies as once measured there, attention as published for FA3.
RATES = {"product": 788e12, "attention": 650e12}  # FLOP/s
BANDWIDTH = 4.3e12  # bytes/s
LAUNCH = 3e-6  # seconds by which a kernel delays the next: assumed
TINY = {
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
}
SHAPES = (*TINY, "caption_channels", "in_channels", "out_channels", "audio_in_channels", "audio_out_channels")
LIBRARY = library.Library("traffic", "DEF")
LIBRARY.define("attend(Tensor query, Tensor key, Tensor value) -> Tensor")
LIBRARY.define("rms_norm(Tensor x, Tensor? weight) -> Tensor")
LIBRARY.impl("attend", lambda query, *_: torch.empty_like(query), "Meta")
LIBRARY.impl("rms_norm", lambda x, _: torch.empty_like(x), "Meta")
ATTEND, RMS_NORM = torch.ops.traffic.attend.default, torch.ops.traffic.rms_norm.default
WITHOUT_KERNEL = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "lift_fresh",
    "detach",
}
ONLY_WRITTEN = {"copy_", "fill_", "zero_"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "linear", "_scaled_mm"}


@dataclass(frozen=True)
class Size:
    """A network and the tokens that go through it."""

    header: Mapping[str, Any]  # in place of the released one's sizes
    video: int
    audio: int
    text: int
    frame: int  # video tokens of a latent frame


SIZES = {
    "full": Size({}, 14_080, 126, 1024, 880),  # 1280x704x121
    "small": Size({}, 3_520, 126, 1024, 220),  # 640x352x121, the first of two stages
    "tiny": Size(TINY, 24, 6, 8, 8),
}
NARROW = Size({**TINY, "num_layers": 48}, 24, 6, 8, 8)  # as many calls as at full size, and little to compute


@dataclass(frozen=True)
class Call:
    """One kernel."""

    name: str
    kind: str  # "product", "attention" or "rest"
    num_bytes: int
    flop: int
    block: int | None  # None: before or after the blocks

    @property
    def seconds(self) -> float:
        """At the ceilings."""
        return max(self.num_bytes / BANDWIDTH, self.flop / RATES.get(self.kind, RATES["product"]))


class Traffic(LiveBytes):
    """Notes every kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.num_operations = 0  # that the host asked for, views too
        self.block: int | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):  # made here, since `meta` takes a millisecond to find their shape
            out = args[-1].new_empty(args[-2].shape[0], args[-1].shape[1])
            self._see(out.untyped_storage())
        else:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        if not func.is_view and name not in WITHOUT_KERNEL:
            read, written = _touched(func, args, kwargs or {}, out)
            kind = "attention" if func is ATTEND else "product" if name in PRODUCTS else "rest"
            self.note(name, kind, read + written, _flop(func, kind, args, kwargs or {}, out))
        return out

    def note(self, name: str, kind: str, num_bytes: int, flop: int = 0) -> None:
        """Add a kernel."""
        self.calls.append(Call(name, kind, num_bytes, flop, self.block))

    def launch(self, kernel: Any, _: int, __: int, *arguments: Any, **constants: Any) -> None:
        """Take the place of what starts a Triton kernel; tensors that it does not read stand in for none."""
        names = [name for name in kernel.arg_names if name not in {*constants, "BLOCK"}]
        tensors = {n: given for n, given in zip(names, arguments, strict=True) if isinstance(given, Tensor)}
        if not constants.get("LOOKUP"):
            tensors.pop("lookup_ptr", None)
        written = [tensor for name, tensor in tensors.items() if name.endswith("out_ptr")]
        read = {id(tensor): tensor for name, tensor in tensors.items() if not name.endswith("out_ptr")}
        self.note(kernel.fn.__name__, "rest", sum(map(_stored, [*written, *read.values()])))

    @contextlib.contextmanager
    def inside(self, blocks: nn.ModuleList) -> Iterator[None]:
        """Know in which block a kernel runs."""

        def enter(index: int | None) -> Callable[..., None]:
            return lambda *_: setattr(self, "block", index)

        hooks = [
            hook
            for index, block in enumerate(blocks)
            for hook in (
                block.register_forward_pre_hook(enter(index)),
                block.register_forward_hook(enter(None)),
            )
        ]
        yield
        for hook in hooks:
            hook.remove()


def _stored(tensor: Tensor) -> int:
    """Count the bytes of a tensor without what is broadcast."""
    count = 1
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if step else 1
    return int(count * tensor.element_size())


def _touched(func: Any, args: Any, kwargs: Any, out: Any) -> tuple[int, int]:
    """Return the bytes that an operation reads and writes."""
    read = written = 0
    given = [*args, *(kwargs.get(argument.name) for argument in func._schema.arguments[len(args) :])]
    for argument, value in zip(func._schema.arguments, given, strict=True):
        size = sum(_stored(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        changed = argument.alias_info is not None and argument.alias_info.is_write
        is_only_written = argument.is_out or func.overloadpacket.__name__ in ONLY_WRITTEN
        written += size if changed else 0
        read += 0 if changed and is_only_written else size
    if not any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
        written += sum(_stored(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
    if func.overloadpacket.__name__ == "index":  # rows that are looked up, not the whole table
        read = min(read, 2 * written)
    return read, written


def _flop(func: Any, kind: str, args: Any, kwargs: Any, out: Any) -> int:
    if kind == "attention":
        query, key, _ = args
        batch, heads, count, width = query.shape
        return int(4 * batch * heads * count * key.shape[2] * width)
    if kind == "rest":
        return 0
    known = "addmm" if func.overloadpacket.__name__ == "_addmm_activation" else None
    packet = getattr(torch.ops.aten, known) if known else func.overloadpacket
    options = {} if known else kwargs
    return int(flop_registry[packet](*args, **options, out_val=out))


@contextlib.contextmanager
def as_on_a_gpu(
    attend: Callable[..., Tensor], rms_norm: Callable[..., Tensor], launch: Callable[..., None] | None
) -> Iterator[None]:
    """Take the ways of a GPU, with other functions for what PyTorch's kernels do.

    Args:
        launch: Starts Triton's kernels; without one the steps are plain PyTorch's.
    """

    def is_fused(_: Tensor) -> bool:
        return launch is not None

    def is_on_gpu(_: Tensor) -> bool:
        return True

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attend))
        stack.enter_context(mock.patch.object(F, "rms_norm", rms_norm))
        stack.enter_context(mock.patch.object(choice, "_is_on_gpu", is_fused))
        stack.enter_context(mock.patch.object(linear, "_is_on_gpu", is_on_gpu))
        if launch is not None:
            from soundstage.nn.kernels import launching

            stack.enter_context(mock.patch.object(launching, "launch", launch))
        yield


@contextlib.contextmanager
def counted(traffic: Traffic, *, triton: bool) -> Iterator[Traffic]:
    """Count what runs, as if on a GPU."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return ATTEND(query, key, value)

    def rms_norm(
        x: Tensor, _: Any, weight: Tensor | None = None, __: float | None = None, **___: Any
    ) -> Tensor:
        return RMS_NORM(x.contiguous(), weight)  # PyTorch's kernel copies rows that lie apart

    with contextlib.ExitStack() as stack:
        stack.enter_context(as_on_a_gpu(attend, rms_norm, traffic.launch if triton else None))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("meta"))
        stack.enter_context(traffic)
        yield traffic


# Networks and their inputs


def header(generation: str, size: Size) -> dict[str, Any]:
    """Return a released transformer's configuration, or a tiny one of its kind."""
    return {**planned_configs()[generation]["transformer"], **size.header}


def inputs(config: TransformerConfig, size: Size, device: str = "meta") -> tuple[StreamInput, StreamInput]:
    """Make tokens and texts, all of them zeros."""
    streams = []
    for shape, count in ((config.video, size.video), (config.audio, size.audio)):
        with torch.device(device):
            sigma = torch.zeros(1)
            stream = StreamInput(
                latents=torch.zeros(1, count, shape.in_channels),
                timesteps=torch.zeros(1, count),
                sigma=sigma,
                positions=torch.zeros(1, len(shape.max_pos), count, 2),
                context=torch.zeros(
                    1, size.text, config.caption_channels or shape.context_dim, dtype=torch.bfloat16
                ),
                levels=NoiseLevels(torch.zeros(1), None),
            )
        streams.append(stream)
    return streams[0], streams[1]


@dataclass(frozen=True)
class Network:
    """A network and the calls of it that are looked at, by what they are called."""

    model: nn.Module
    config: TransformerConfig
    unit: int  # bytes
    calls: Mapping[str, Callable[[], object]]
    tables: Sequence[Tensor] = ()  # of positions, made before


def our_network(generation: str, kernels: str, size: Size, device: str = "meta") -> Network:
    """Make our transformer; a forward at a run's beginning and within it, a guided step of four passes."""
    config = TransformerConfig.from_header(header(generation, size))
    with torch.device(device):
        model = AVTransformer(config).to(torch.bfloat16).requires_grad_(False).eval()
    model.join_projections()
    use_kernels(model, TritonKernels() if kernels == "triton" else TORCH)
    video, audio = inputs(config, size, device)
    other = AV(video, audio).map(lambda stream: Text(context=torch.zeros_like(stream.context)))
    own = AV(video.text, audio.text)
    branches = four_passes(own, other, round(config.num_layers * 29 / 48))
    kept = Kept()
    alone = Passes(branches=branches[1:2], kept=None, rows_at_once=1)

    def tokens_at_once(times: Tensor) -> int:
        return size.frame if times.shape[-2] == size.video else 1  # what positions with values would say

    finding = mock.patch.object(tables_of_positions, "tokens_at_once", tokens_at_once)
    with torch.no_grad(), torch.device(device), finding:
        ropes = model.prepare(video.positions, audio.positions)
    tables = [leaf for leaf in tree_leaves([ropes.video, ropes.audio]) if isinstance(leaf, Tensor)]

    def calling(passes: Passes) -> Callable[[], object]:
        return lambda: model(video, audio, ropes=ropes, passes=passes)

    calls = {
        "first": calling(alone),
        "within": calling(replace(alone, kept=kept)),
        "guided step": calling(Passes(branches=branches, kept=kept, rows_at_once=1)),
    }
    return Network(model, config, _unit(config, size), calls, tables)


def their_network(generation: str, size: Size, device: str = "meta") -> Network:
    """Make diffusers' transformer, called without a text mask, as its fastest way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what diffusers warns of on import is not ours to judge
        from diffusers import LTX2VideoTransformer3DModel as Theirs

    given = header(generation, size)
    newer = generation != "2.0"
    options = {name: given[name] for name in SHAPES if name in given} | {
        "use_prompt_embeddings": not newer,
        "gated_attn": newer,
        "cross_attn_mod": newer,
        "audio_gated_attn": newer,
        "audio_cross_attn_mod": newer,
        "rope_type": "split",
    }
    with torch.device(device):
        model = Theirs(**options).to(torch.bfloat16).requires_grad_(False).eval()
    config = TransformerConfig.from_header(given)
    video, audio = inputs(config, size, device)
    with torch.device(device):
        level = torch.zeros(1, 1)  # one for all tokens, as for text to video
    call = {
        "hidden_states": video.latents.to(torch.bfloat16),
        "audio_hidden_states": audio.latents.to(torch.bfloat16),
        "encoder_hidden_states": video.context,
        "audio_encoder_hidden_states": audio.context,
        "timestep": level,
        "audio_timestep": level,
        "sigma": level[0],
        "audio_sigma": level[0],
        "video_coords": video.positions,
        "audio_coords": audio.positions,
        "return_dict": False,
    }
    return Network(model, config, _unit(config, size), {"forward": lambda: model(**call)})


def _unit(config: TransformerConfig, size: Size) -> int:
    return torch.bfloat16.itemsize * size.video * config.video.dim


@dataclass
class Count:
    """What one call of a network was counted to do."""

    network: str
    kernels: str
    call: str
    calls: list[Call]
    peak: int  # bytes
    unit: int  # bytes
    num_blocks: int
    num_operations: int  # with views, without Triton's
    host: float | None = None  # seconds

    @property
    def block(self) -> list[Call]:
        """The kernels of a middle block."""
        return [call for call in self.calls if call.block == self.num_blocks // 2 - 1]

    def seconds(self, *, launches: bool) -> float:
        """Estimate."""
        return sum(call.seconds for call in self.calls) + (LAUNCH * len(self.calls) if launches else 0)


def count_ours(generation: str, kernels: str, size: Size) -> list[Count]:
    """Count the calls of our transformer; of plain PyTorch the first alone."""
    network = our_network(generation, kernels, size)
    triton, counts = kernels == "triton", []
    for name, call in network.calls.items():
        if name == "within":
            with counted(Traffic(), triton=True):
                network.calls["guided step"]()  # fills what is kept
        counts.append(_counted_call(network, f"ours {generation}", kernels, name, call, triton=triton))
        if not triton:
            break
    return counts


def count_theirs(generation: str, size: Size) -> list[Count]:
    """Count diffusers' forward."""
    network = their_network(generation, size)
    ((name, call),) = network.calls.items()
    return [_counted_call(network, f"diffusers {generation}", "its own", name, call, triton=False)]


def _counted_call(
    network: Network, title: str, kernels: str, name: str, call: Callable[[], object], *, triton: bool
) -> Count:
    traffic = Traffic()
    held = nn.ParameterList(nn.Parameter(table, requires_grad=False) for table in network.tables)
    traffic.ignore(network.model, held)  # views of the tables are no new memory
    blocks = network.model.transformer_blocks
    assert isinstance(blocks, nn.ModuleList)
    with counted(traffic, triton=triton), traffic.inside(blocks):
        call()
    peak = traffic.peak + sum(table.nbytes for table in network.tables)
    sizes = peak, network.unit, network.config.num_layers
    return Count(title, kernels, name, traffic.calls, *sizes, traffic.num_operations)


@contextlib.contextmanager
def beside_kernels(*, triton: bool) -> Iterator[None]:
    """Make empty tensors where products, attention and norms would be computed; the host's work is left."""

    def linear_(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        del bias
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    def activated(_: Tensor, x: Tensor, weight: Tensor, **__: Any) -> Tensor:
        return x.new_empty((x.shape[0], weight.shape[1]))

    def attend(query: Tensor, *_: Any, **__: Any) -> Tensor:
        items, heads, tokens, width = query.shape
        return query.new_empty((items, tokens, heads, width)).transpose(1, 2)

    def norm(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.empty_like(x)

    def launch(*_: Any, **__: Any) -> None:
        return None

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "linear", linear_))
        stack.enter_context(mock.patch.object(torch, "_addmm_activation", activated))
        stack.enter_context(as_on_a_gpu(attend, norm, launch if triton else None))
        stack.enter_context(torch.no_grad())
        yield


def time_host(counts: list[Count], size: Size, rounds: int) -> None:
    """Add to every count how long the host takes for its call, beside starting kernels."""
    torch.set_num_threads(1)
    networks = {}
    for network, kernels in dict.fromkeys((count.network, count.kernels) for count in counts):
        generation = network.split()[-1]
        is_peer = kernels == "its own"
        networks[network, kernels] = (
            their_network(generation, size, "cpu")
            if is_peer
            else our_network(generation, kernels, size, "cpu")
        )
    took: list[list[float]] = [[] for _ in counts]
    gc.collect()
    gc.freeze()  # what networks are made of would be looked through again and again
    for number in range(rounds + 1):
        for count, seconds in zip(counts, took, strict=True):
            call = networks[count.network, count.kernels].calls[count.call]
            with beside_kernels(triton=count.kernels == "triton"):
                began = time.process_time()
                call()
                elapsed = time.process_time() - began
            if number > 0:  # the first one makes what is kept of texts
                seconds.append(elapsed)
    gc.unfreeze()
    for count, seconds in zip(counts, took, strict=True):
        count.host = statistics.median(seconds)


# Reporting


def table(counts: list[Count]) -> list[str]:
    """Write one line per count."""
    is_timed = any(count.host is not None for count in counts)
    lines = [
        "| network | fused steps | call | kernels of a block (products, attention, rest) | U of a block "
        "| kernels | traffic, GB | TFLOP | peak, GiB | estimate, ms | / diffusers | with launches, ms "
        "| / diffusers |" + (" host, ms |" if is_timed else ""),
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|" + ("---:|" if is_timed else ""),
    ]
    for count in counts:
        block, kinds = count.block, Counter(call.kind for call in count.block)
        rest = [call for call in count.calls if call.kind == "rest"]
        peer = next((c for c in counts if c.network == f"diffusers {count.network.split()[-1]}"), None)
        times = 4 if count.call == "guided step" else 1
        cells = [
            count.network,
            count.kernels,
            count.call,
            f"{len(block)} ({kinds['product']}, {kinds['attention']}, {kinds['rest']})",
            f"{sum(call.num_bytes for call in block if call.kind == 'rest') / count.unit:.1f}",
            f"{len(count.calls):,}",
            f"{sum(call.num_bytes for call in rest) / 1e9:.1f}",
            f"{sum(call.flop for call in count.calls) / 1e12:.1f}",
            f"{count.peak / GIB:.2f}",
        ]
        for launches in (False, True):
            seconds = count.seconds(launches=launches)
            ratio = "" if peer is None else f"{seconds / times / peer.seconds(launches=launches):.3f}"
            cells += [f"{1e3 * seconds:.1f}", ratio]
        if count.host is not None:
            cells.append(f"{1e3 * count.host:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def listing(count: Count) -> list[str]:
    """Write every kernel of a middle block, and how much of what else it moves."""
    return [f"{count.network}, {count.kernels}, {count.call}: kernels of a middle block"] + [
        f"  {call.name:24} {call.kind:10} {call.num_bytes / count.unit:8.3f} U {call.flop / 1e12:8.3f} TFLOP"
        for call in count.block
    ]


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", choices=SIZES, default="full")
    parser.add_argument("--generations", nargs="+", choices=["2.0", "2.3"], default=["2.0", "2.3"])
    parser.add_argument("--kernels", nargs="*", choices=["triton", "torch"], default=["triton", "torch"])
    parser.add_argument("--no-peer", action="store_true", help="leave diffusers out")
    parser.add_argument("--list", metavar="KERNELS-GENERATION", help="also every kernel of a middle block")
    parser.add_argument("--host", type=int, metavar="ROUNDS", help="also time what the host does")
    options = parser.parse_args()
    size, counts = SIZES[options.config], list[Count]()
    for generation in options.generations:
        for kernels in options.kernels:
            counts += count_ours(generation, kernels, size)
        if not options.no_peer:
            counts += count_theirs(generation, size)
    if options.host:
        time_host(counts, SIZES["tiny"] if options.config == "tiny" else NARROW, options.host)
    for count in counts:
        if options.list == f"{count.kernels}-{count.network.split()[-1]}" or (
            options.list == count.network.replace(" ", "-")
        ):
            print("\n".join([*listing(count), ""]))
    print(
        f"Counts and estimates, not timings: {options.config}, {size.video:,} video, {size.audio} audio and "
        f"{size.text:,} text tokens; torch {torch.__version__}, commit {_commit()}\n"
    )
    print("\n".join(table(counts)))


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return "unknown"
    return asked.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
