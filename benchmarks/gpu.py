"""The full-size transformer, video decoder and sound decoder on one GPU, with random weights made there.

python benchmarks/gpu.py                      # under nine minutes; the table for docs/benchmarks.md is last
python benchmarks/gpu.py --tiny --device cpu  # a model of a few kilobytes: shows that everything runs
python benchmarks/gpu.py --only bf16 fp8      # some sections

Every section has a time budget; one that fails or is slow is noted, and the others go on. With --out, or $OUT
in the environment, what is known is also written to gpu.json and gpu.md there after every section. Times are
medians; peak memory is what comes on top of the weights. diffusers is measured in the same run if it is
installed, eagerly and without a text mask, as its fastest way here.
"""

import argparse
import gzip
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpu_report import GIB, REPOSITORY, Bench, Row, Size, save, table
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import AV
from soundstage.diffusion.flow import each_stream
from soundstage.diffusion.guidance import GuidancePlan, SpatioTemporalGuidance, StreamGuidance
from soundstage.diffusion.samplers import euler_step
from soundstage.diffusion.schedules import shifted
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.flops import ForwardFlops, forward_flops
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.step_cache import CacheRule, StepCache
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.tiling import decode_streamed
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.model import build_vocoder
from soundstage.nn.attention_backends import ATTENTION, choose_attention, use_attention
from soundstage.nn.kernels.choice import choose_kernels, use_kernels
from soundstage.pipelines.conditions import StreamState, VideoGrid, empty_audio, empty_video
from soundstage.pipelines.decode import plan_video
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.text_conditioning import Contexts
from soundstage.runtime.compile import cold_start, compile_blocks, uncompile_blocks
from soundstage.runtime.cuda_graphs import GraphedTransformer
from soundstage.runtime.precision import full_float32
from soundstage.runtime.quantization.registry import quantize

HEADER = REPOSITORY / "tests" / "parity" / "headers" / "ltx-2.0.json.gz"  # of the released 19B model
SECONDS = 530  # for everything, so that the table is printed before nine minutes are over
PEER_FORWARD, PEER_DECODER = "diffusers: forward, bf16", "diffusers: video decoder, whole"
DAMPING = 0.01  # of what is embedded of noise levels, for the step cache
STEPS = 20  # of a run with the step cache
STEP_CACHES = (0.02, 0.05, 0.1)  # thresholds, those of docs/guide/speed.md
PEAK_BAR = 1.6  # GiB above the weights, for one forward
PASSES = ("cond", "uncond", "perturbed", "isolated")
FRAME_RATE = 24
# Kernels by what they do, from their names; what matches none is element-wise or moves memory.
KINDS = {
    "attention": ("flash", "fmha", "sdpa", "attention", "sage"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "addmm", "linear", "aten::mm", "bmm"),
    "convolutions": ("conv", "implicit", "wgrad", "dgrad"),
    "own kernels": ("_norm_modulate", "_norm_rope", "_gate_add", "_quantise_rows"),
}
TINY_TRANSFORMER = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 32,
    "caption_channels": 32,
    "in_channels": 16,
    "out_channels": 16,
    "audio_in_channels": 16,
    "audio_out_channels": 16,
}
logger = logging.getLogger("gpu")


class OutOfTimeError(BaseException):
    """A section used its time up; nothing that a section calls may take it for an error of its own."""


# What is measured


def header() -> dict[str, Any]:
    config: dict[str, Any] = json.loads(gzip.decompress(HEADER.read_bytes()))["config"]
    return config


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Draw weights where they are, of a size that keeps activations near one."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            tensor.zero_()
        elif tensor.ndim > 1:
            tensor.normal_(0, max(tensor[0].numel(), 1) ** -0.5)
        elif "norm" in name or "std" in name:
            tensor.fill_(1)
        else:
            tensor.normal_(0, 0.02)
    return module.eval().requires_grad_(False)


def build_transformer(bench: Bench) -> AVTransformer:
    bench.config = TransformerConfig.from_header(TINY_TRANSFORMER if bench.tiny else header()["transformer"])
    with torch.device("meta"):
        network = AVTransformer(bench.config).to(bench.dtype)
    network = network.to_empty(device=bench.device)
    fill(network)
    network.join_projections()
    return network


def geometry(bench: Bench) -> tuple[VideoGeometry, AudioGeometry]:
    if bench.tiny:
        return VideoGeometry(channels=16), AudioGeometry(channels=1)
    return VideoGeometry(), AudioGeometry()


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a network is given for a clip of some size."""

    states: AV[StreamState]
    noisy: AV[Tensor]
    texts: Sequence[AV[Tensor]]  # of the prompt and of the negative prompt
    num_tokens: tuple[int, int]
    num_text: int


@dataclass
class Run:
    """A clip with a denoiser for it."""

    clip: Clip
    denoiser: TransformerDenoiser

    def __call__(self) -> Any:
        return self.denoiser(self.clip.noisy, 0.7, ("cond",))

    def guided(self) -> Any:
        return self.denoiser(self.clip.noisy, 0.7, PASSES)

    def velocities(self) -> AV[Tensor]:
        """Predict once, in float32."""
        (denoised,) = self()
        return each_stream(lambda noisy, clean: (noisy - clean) / 0.7, self.clip.noisy, denoised)

    def sample(self, sigmas: Tensor, cache: StepCache | None) -> AV[Tensor]:
        """Walk from noise to latents without guidance, by Euler's steps."""
        self.denoiser.cache = cache
        noisy = self.clip.noisy
        for sigma, sigma_next in pairwise(sigmas.tolist()):
            (denoised,) = self.denoiser(noisy, sigma, ("cond",))
            noisy = each_stream(euler_step, noisy, denoised, sigma=sigma, sigma_next=sigma_next)
        return noisy


def make_clip(bench: Bench, size: Size) -> Clip:
    video_geometry, audio_geometry = geometry(bench)
    grid = VideoGrid.of(video_geometry, size.num_frames, size.height, size.width, Fraction(FRAME_RATE))
    num_audio = audio_geometry.num_tokens(size.num_frames, FRAME_RATE)
    states = AV(empty_video(grid), empty_audio(audio_geometry, num_audio)).map(lambda s: s.to(bench.device))
    num_text, width = (16, TINY_TRANSFORMER["caption_channels"]) if bench.tiny else (1024, 3840)

    def text() -> Tensor:
        return torch.randn(1, num_text, width, device=bench.device).to(bench.dtype)

    return Clip(
        states=states,
        noisy=states.map(lambda state: torch.randn_like(state.latents)),
        texts=(AV(text(), text()), AV(text(), text())),
        num_tokens=(grid.num_tokens, num_audio),
        num_text=num_text,
    )


def errors(got: AV[Tensor], expected: AV[Tensor]) -> str:
    """Say how far two pairs are apart, relative to the second."""
    away = each_stream(lambda a, b: (a - b).norm() / b.norm(), got, expected)
    return f"picture {float(away.video):.2%}, sound {float(away.audio):.2%}"


def make_run(
    bench: Bench,
    size: Size,
    transformer: AVTransformer,
    clip: Clip | None = None,
    *,
    keep_texts: bool = True,
) -> Run:
    clip = clip or make_clip(bench, size)
    block = perturbed_block(transformer.config)
    stg = StreamGuidance(terms=(SpatioTemporalGuidance(scale=1.0, blocks=(block,)),))
    contexts = Contexts(prompt=clip.texts[0], negative=clip.texts[1])
    plan = GuidancePlan(streams=AV(stg, stg))
    return Run(clip, TransformerDenoiser(transformer, clip.states, contexts, plan, keep_texts=keep_texts))


def perturbed_block(config: TransformerConfig) -> int:
    return min(29, config.num_layers - 1)


def flops(bench: Bench, clip: Clip) -> ForwardFlops:
    assert bench.config is not None
    return forward_flops(
        bench.config,
        num_video_tokens=clip.num_tokens[0],
        num_audio_tokens=clip.num_tokens[1],
        num_text_tokens=clip.num_text,
    )


def tflop(bench: Bench, clip: Clip) -> float:
    return flops(bench, clip).total / 1e12


def guided_tflop(bench: Bench, clip: Clip) -> float:
    """Count a step of four passes: one shares blocks, one has nothing across, and texts were read before."""
    assert bench.config is not None
    count = flops(bench, clip)
    shared = perturbed_block(bench.config) / bench.config.num_layers * count.in_blocks
    return (4 * (count.total - count.text_constant) - shared - count.across) / 1e12


def attention_that_runs(bench: Bench, run: Run, network: AVTransformer) -> str:
    """Ask the backend which kernel a call of video self-attention runs."""
    assert bench.config is not None
    video = bench.config.video
    shape = (1, video.heads, run.clip.num_tokens[0], video.head_dim)
    q = torch.empty(shape, device=bench.device, dtype=bench.dtype)
    backend = network.transformer_blocks[0].attn1.attention_backend
    return str(backend.ran(q, q, q))


# Sections


def measure_ceilings(bench: Bench) -> None:
    """Measure what the device reaches at best: matrix products and copies."""
    n = 128 if bench.tiny else 8192
    a, b = (torch.randn(n, n, device=bench.device).to(bench.dtype) for _ in "ab")
    flop = 2 * n**3 / 1e12
    times = bench.time(lambda: a @ b, warm=3, rounds=20)
    bench.ceilings["bf16"] = flop / min(times)
    if bench.device.type == "cuda" and torch.cuda.get_device_capability(bench.device) >= (8, 9):
        left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t().contiguous().t()
        ones = torch.ones(n, 1, device=bench.device), torch.ones(1, n, device=bench.device)

        def product() -> Tensor:
            return torch._scaled_mm(left, right, *ones, out_dtype=bench.dtype, use_fast_accum=True)

        bench.ceilings["fp8"] = flop / min(bench.time(product, warm=3, rounds=20))
    source = torch.empty(2**20 if bench.tiny else 2**31, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    times = bench.time(lambda: target.copy_(source), warm=2, rounds=10)
    copy = 2 * source.numel() / min(times) / 1e12
    bench.facts["ceilings"] = ", ".join(
        [f"{name} product {value:.0f} TFLOP/s" for name, value in bench.ceilings.items()]
        + [f"copy {copy:.2f} TB/s"]
    )


def measure_bf16(bench: Bench) -> None:
    """Measure forward and guided step, in plain PyTorch and with what is chosen for the device."""
    bench.free()
    before = torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else 0
    network = bench.transformer = build_transformer(bench)
    if bench.device.type == "cuda":
        bench.weights_gib = (torch.cuda.memory_allocated(bench.device) - before) / GIB
    use_attention(network, choose_attention("auto", bench.device, bench.dtype))
    away = try_kernels(bench, network)
    kernels = choose_kernels(bench.kernels, bench.device)
    for size in bench.sizes:
        use_kernels(network, kernels)
        memory_rows(bench, size, network)  # first, while no other run keeps anything
        run = make_run(bench, size, network)
        known = {
            "tflop": tflop(bench, run.clip),
            "ceiling": bench.ceilings.get("bf16"),
            "floor": bench.floor(size, "bf16"),
        }
        use_kernels(network, choose_kernels("torch", bench.device))
        known |= {"peer": PEER_FORWARD}
        bench.row(size, "forward, bf16, plain PyTorch", run, **known)
        use_kernels(network, kernels)
        note = f"attention {attention_that_runs(bench, run, network)}, kernels {kernels.name}{away}"
        forward = bench.row(size, "forward, bf16", run, note=note, **known)
        guided_row(bench, size, "bf16", run, forward)
        bench.parts[str(size)] = breakdown(bench, run)
        del run


def memory_rows(bench: Bench, size: Size, network: AVTransformer) -> None:
    """Measure a forward that keeps nothing, which the bar is for, and one that makes what a run keeps."""
    clip, kept = make_clip(bench, size), list[int]()
    bare = make_run(bench, size, network, clip, keep_texts=False)
    row = bench.row(size, "forward, bf16, nothing kept", bare, rounds=2, tflop=tflop(bench, clip))
    row.note = f"for 'all' the bar at 1280x704x121 is {PEAK_BAR} GiB"
    del bare

    def first() -> None:
        run = make_run(bench, size, network, clip)
        run()
        assert run.denoiser.kept is not None
        kept.append(run.denoiser.kept.num_bytes)

    row = bench.row(size, "forward, bf16, first of a run", first, rounds=1)
    row.note = f"keeps {kept[-1] / GIB:.2f} GiB of one text"


def try_kernels(bench: Bench, network: AVTransformer) -> str:
    """Try the fused steps that the device would be given; say how far they are from plain PyTorch.

    Where they fail, all sections go on without.
    """
    run = make_run(bench, bench.small, network)
    use_kernels(network, choose_kernels("torch", bench.device))
    plain = run.velocities()
    try:
        kernels = choose_kernels("auto", bench.device)
        use_kernels(network, kernels)
        return f", from plain PyTorch's velocities by: {errors(run.velocities(), plain)}"
    except Exception as error:
        bench.kernels = "torch"
        bench.facts["kernels"] = f"failed, left out: {type(error).__name__}: {str(error)[:200]}"
        logger.error("%s", traceback.format_exc())
        return ""


def guided_row(bench: Bench, size: Size, form: str, run: Run, forward: Row) -> None:
    """Measure a guided step of four passes, as so many forwards as its time is."""
    row = bench.row(
        size, f"guided step of 4 passes, {form}", run.guided, rounds=3, peer=PEER_FORWARD, peer_times=4
    )
    row.tflop, row.ceiling = guided_tflop(bench, run.clip), forward.ceiling
    row.note = f"{(row.seconds or 0) / (forward.seconds or 1):.2f} forwards"


def measure_attention(bench: Bench) -> None:
    """Measure a forward with every attention backend that can run."""
    network = _network(bench)
    size = bench.sizes[0]
    run = make_run(bench, size, network)
    for name, backend in ATTENTION.items():
        if name in ("math", "efficient") and not bench.tiny:
            continue  # slower than all others, and at this size without the memory
        reason = backend.why_not(bench.device, bench.dtype)
        if reason is not None:
            bench.facts[f"attention {name}"] = reason
            continue
        use_attention(network, choose_attention(name, bench.device, bench.dtype))
        ran = attention_that_runs(bench, run, network)
        exact = "" if backend.exact else ", approximate"
        bench.row(
            size,
            f"forward, bf16, attention {name}",
            run,
            rounds=3,
            tflop=tflop(bench, run.clip),
            note=f"{ran}{exact}",
        )
    use_attention(network, choose_attention("auto", bench.device, bench.dtype))


def measure_graphs(bench: Bench) -> None:
    """Measure a small forward, eagerly and as a CUDA graph."""
    network = _network(bench)
    run = make_run(bench, bench.small, network)
    known = {"tflop": tflop(bench, run.clip), "ceiling": bench.ceilings.get("bf16")}
    eager = bench.row(bench.small, "forward, bf16, small", run, **known)
    if bench.device.type != "cuda":
        eager.note = "no CUDA graphs off the GPU"
        return
    graphed = GraphedTransformer(network)
    run.denoiser.forward = graphed
    run()
    bench.row(
        bench.small,
        "forward, bf16, CUDA graph",
        run,
        note=f"cold start {graphed.cold_starts[0].seconds:.1f} s",
        **known,
    )


def measure_compiled(bench: Bench) -> None:
    """Measure blocks under `torch.compile`, and what compiling costs."""
    network = _network(bench)
    compile_blocks(network, backend="eager" if bench.tiny else "inductor")
    try:
        for size in bench.sizes:
            run = make_run(bench, size, network)
            _, start = cold_start("compiling", run)
            known = {
                "tflop": tflop(bench, run.clip),
                "ceiling": bench.ceilings.get("bf16"),
                "floor": bench.floor(size, "bf16"),
            }
            ran = attention_that_runs(bench, run, network)
            forward = bench.row(
                size,
                "forward, bf16, compiled",
                run,
                rounds=3,
                peer=PEER_FORWARD,
                note=f"attention {ran}, cold start {start.seconds:.1f} s",
                **known,
            )
            guided_row(bench, size, "bf16, compiled", run, forward)
    finally:
        uncompile_blocks(network)


def measure_step_cache(bench: Bench) -> None:
    """Measure a run without guidance, with the step cache off and at three thresholds.

    How much is left out, and how far the clip then is from what it was, depends on the weights; of random
    ones it says what the cache costs and saves, not how good it is.
    """
    network = _network(bench)
    with calmed(network):
        _step_cache_rows(bench, network)


@contextmanager
def calmed(network: AVTransformer) -> Iterator[None]:
    """Damp what the network embeds of noise levels.

    With random weights it changes so much from step to step that no step could be left out.
    """
    weights = [
        weight
        for name, weight in network.named_parameters()
        if name.endswith("timestep_embedder.linear_1.weight")
    ]
    kept = [weight.clone() for weight in weights]
    for weight in weights:
        weight.mul_(DAMPING)
    try:
        yield
    finally:
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)


def _step_cache_rows(bench: Bench, network: AVTransformer) -> None:
    run = make_run(bench, bench.small, network)
    sigmas = shifted(STEPS)
    what = f"{STEPS} steps, bf16, small"
    exact: list[AV[Tensor]] = []
    bench.row(bench.small, what, lambda: exact.append(run.sample(sigmas, None)), rounds=1)
    for threshold in STEP_CACHES:
        made: dict[str, Any] = {}

        def cached(threshold: float = threshold, made: dict[str, Any] = made) -> None:
            made["cache"] = StepCache(CacheRule(threshold=threshold, num_calls=STEPS))
            made["latents"] = run.sample(sigmas, made["cache"])

        row = bench.row(bench.small, f"{what}, step cache {threshold:g}", cached, rounds=1)
        away = errors(made["latents"], exact[-1])
        row.note = f"{made['cache'].share:.0%} left out; latents away by: {away} (random weights, calmed)"


def measure_fp8(bench: Bench) -> None:
    """Measure with the blocks' weights in 8 bits, inputs quantised on the way; this replaces the weights."""
    network = _network(bench)
    clips = {size: make_clip(bench, size) for size in bench.sizes}
    exact = {size: make_run(bench, size, network, clip).velocities() for size, clip in clips.items()}
    quantize(network, "fp8", inside="transformer_blocks")
    use_kernels(network, choose_kernels(bench.kernels, bench.device))
    bench.free()
    if bench.device.type == "cuda":
        whole, bench.weights_gib = bench.weights_gib, _own_gib(network)
        bench.facts["weights"] = f"{whole:.1f} GiB in bf16, {bench.weights_gib:.1f} GiB with fp8 blocks"
    for size in bench.sizes:
        run = make_run(bench, size, network, clips[size])
        known = {
            "tflop": tflop(bench, run.clip),
            "ceiling": bench.ceilings.get("fp8"),
            "floor": bench.floor(size, "fp8"),
        }
        forward = bench.row(size, "forward, fp8", run, peer=PEER_FORWARD, **known)
        forward.note = (
            f"attention {attention_that_runs(bench, run, network)}; "
            f"velocities away from bf16 by: {errors(run.velocities(), exact[size])}"
        )
        guided_row(bench, size, "fp8", run, forward)
    bench.transformer = None


def measure_diffusers(bench: Bench) -> None:
    """Measure another implementation's transformer, with random weights of the same shapes."""
    bench.transformer = None
    bench.free()
    theirs = diffusers_class("LTX2VideoTransformer3DModel")
    if theirs is None:
        bench.facts["diffusers"] = "not installed"
        return
    import diffusers

    bench.facts["diffusers"] = diffusers.__version__
    section = TINY_TRANSFORMER if bench.tiny else header()["transformer"]
    options = {name: section[name] for name in TINY_TRANSFORMER if name in section}
    network = made_there(bench, lambda: theirs(**options, use_prompt_embeddings=True, rope_type="split"))
    bench.config = TransformerConfig.from_header(section)
    for size in bench.sizes:
        clip = make_clip(bench, size)
        video, audio = clip.states.video, clip.states.audio
        assert video is not None
        assert audio is not None
        level = 700.0  # diffusers wants noise levels multiplied already
        call = {
            "hidden_states": clip.noisy.video.to(bench.dtype),
            "audio_hidden_states": clip.noisy.audio.to(bench.dtype),
            "encoder_hidden_states": clip.texts[0].video,
            "audio_encoder_hidden_states": clip.texts[0].audio,
            "timestep": torch.full((1, 1), level, device=bench.device),  # one for all tokens, its fastest way
            "audio_timestep": torch.full((1, 1), level, device=bench.device),
            "sigma": torch.full((1,), level, device=bench.device),
            "audio_sigma": torch.full((1,), level, device=bench.device),
            "video_coords": video.positions,
            "audio_coords": audio.positions,
            "return_dict": False,
        }

        @torch.no_grad()
        def forward(call: dict[str, Any] = call) -> Any:
            return network(**call)

        bench.row(size, PEER_FORWARD, forward, tflop=tflop(bench, clip), ceiling=bench.ceilings.get("bf16"))


def measure_video_vae(bench: Bench) -> None:
    """Measure the video decoder, whole, and the other implementation's."""
    bench.transformer = None
    bench.free()
    section = header()["vae"]
    if bench.tiny:
        section |= {"latent_channels": 8, "encoder_base_channels": 8, "decoder_base_channels": 8}
    config = VideoVAEConfig.from_header(section)
    vae = made_there(bench, lambda: VideoVAE(config))
    if bench.device.type == "cuda":
        vae.to(memory_format=torch.channels_last_3d)  # as for a clip
    theirs = diffusers_class("AutoencoderKLLTX2Video")
    # The narrowest width that its arguments name is twice the one that ours name.
    base = 2 * config.decoder_base_channels

    def make_other() -> Any:
        return made_there(
            bench,
            lambda: theirs(
                latent_channels=config.latent_channels,
                block_out_channels=tuple(base * 2**i for i in range(4)),
                decoder_block_out_channels=tuple(base * 2**i for i in range(3)),
                layers_per_block=(4, 6, 6, 2, 2),
                decoder_layers_per_block=(5, 5, 5, 5),
                encoder_causal=True,
                decoder_causal=False,
                encoder_spatial_padding_mode="zeros",
                decoder_spatial_padding_mode="reflect",
            ),
        )

    pending: list[tuple[Size, Tensor]] = []
    for size in bench.sizes:
        shape = config.geometry.latent_shape(size.num_frames, size.height, size.width)
        latents = torch.randn(1, config.latent_channels, *shape, device=bench.device).to(bench.dtype)

        @torch.no_grad()
        def own(latents: Tensor = latents) -> Tensor:
            return vae.decode(latents)

        @torch.no_grad()
        def streamed(latents: Tensor = latents) -> None:
            for _ in decode_streamed(vae, latents, plan_video(vae, latents)):
                pass

        bench.row(size, "video decoder, whole", own, rounds=3, peer=PEER_DECODER)
        bench.row(size, "video decoder, streamed", streamed, rounds=3, peer=PEER_DECODER)
        pending.append((size, latents))
    if theirs is None:
        return
    other = make_other()  # last: should it be made otherwise by now, ours are measured
    for size, latents in pending:

        @torch.no_grad()
        def peer(latents: Tensor = latents) -> Any:
            return other.decode(latents, return_dict=False)

        bench.row(size, PEER_DECODER, peer, rounds=3)


def measure_sound(bench: Bench) -> None:
    """Measure the sound decoder and the vocoder, in float32 without TF32, as they are used."""
    sections = header()
    audio, vocoder = sections["audio_vae"], sections["vocoder"]
    if bench.tiny:
        audio["model"]["params"]["ddconfig"] |= {"ch": 8}
        vocoder |= {"upsample_initial_channel": 64}
    config = AudioVAEConfig.from_header(audio)
    vae = made_there(bench, lambda: AudioVAE(config), torch.float32)
    voice = made_there(bench, lambda: build_vocoder(VocoderConfig.from_header(vocoder)), torch.float32)
    for seconds in (1,) if bench.tiny else (5, 20):
        num_tokens = AudioGeometry().num_tokens(seconds * FRAME_RATE, FRAME_RATE)
        latents = torch.randn(1, config.z_channels, num_tokens, config.latent_bins, device=bench.device)

        @torch.no_grad()
        def decode(latents: Tensor = latents) -> Tensor:
            with full_float32():
                return vae.decode(latents)

        mel = decode()

        @torch.no_grad()
        def speak(mel: Tensor = mel) -> Tensor:
            with full_float32():
                return voice(mel)

        bench.row(f"{seconds} s", "sound decoder, float32", decode)
        bench.row(f"{seconds} s", "vocoder, float32", speak)


SECTIONS: dict[str, tuple[Callable[[Bench], None], float]] = {  # in this order, each with its most seconds
    "ceilings": (measure_ceilings, 30),
    "bf16": (measure_bf16, 150),
    "attention": (measure_attention, 40),
    "graphs": (measure_graphs, 40),
    "step_cache": (measure_step_cache, 40),
    "fp8": (measure_fp8, 90),
    "diffusers": (measure_diffusers, 90),
    "video_vae": (measure_video_vae, 60),
    "sound": (measure_sound, 30),
    "compiled": (measure_compiled, 110),  # last, since it takes longest
}


def _network(bench: Bench) -> AVTransformer:
    if bench.transformer is None:
        bench.transformer = build_transformer(bench)
        use_kernels(bench.transformer, choose_kernels(bench.kernels, bench.device))
        bench.weights_gib = _own_gib(bench.transformer)
        use_attention(bench.transformer, choose_attention("auto", bench.device, bench.dtype))
    return bench.transformer


def _own_gib(network: nn.Module) -> float:
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in network.state_dict().values()
    }
    return sum(storages.values()) / GIB


def made_there(bench: Bench, make: Callable[[], nn.Module], dtype: torch.dtype | None = None) -> Any:
    """Make a network on the device in a number format, with random weights."""
    torch.set_default_dtype(dtype or bench.dtype)
    try:
        with torch.device(bench.device):
            return fill(make())
    finally:
        torch.set_default_dtype(torch.float32)


def diffusers_class(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import diffusers

            return getattr(diffusers, name)
        except (ImportError, AttributeError, RuntimeError):
            return None


def breakdown(bench: Bench, run: Run) -> dict[str, float]:
    """Sort the time of one forward by what kernels do."""
    gpu = bench.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        run()
        bench.sync()
    seconds: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        if spent <= 0:
            continue
        name = event.key.lower()
        kind = next(
            (kind for kind, marks in KINDS.items() if any(mark in name for mark in marks)), "element-wise"
        )
        seconds[kind] += spent / 1e6
        seconds["calls"] += event.count
    return dict(seconds)


# Running and reporting


def run_section(bench: Bench, name: str) -> None:
    function, most = SECTIONS[name]
    most = 20 * most if bench.tiny else most  # there it is only to be seen that it runs
    budget = min(most, bench.left)
    if budget < 3:
        bench.facts[name] = "left out: no time left"
        return
    begun = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, budget, 5)  # and again, where it came in the middle of a destructor
    try:
        function(bench)
    except OutOfTimeError:
        bench.facts[name] = f"cut off after {budget:.0f} s"
    except Exception as error:
        bench.facts[name] = (
            f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        )
        logger.error("%s", traceback.format_exc())
        if bench.tiny:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        bench.free()
        logger.info("%s took %.1f s", name, time.monotonic() - begun)
        save(bench)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model; a section that fails ends the run")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=float, help=f"for everything; {SECONDS} unless --tiny")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ["OUT"]) if os.environ.get("OUT") else None
    )
    parser.add_argument("--commit", default="", help="of what runs here, where git cannot tell")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --tiny --device cpu shows that everything runs")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d ms %(message)s")
    signal.signal(signal.SIGALRM, _out_of_time)
    torch.manual_seed(0)
    if options.tiny and device.type == "cpu":
        torch.set_num_threads(1)  # more only wait for each other
    seconds = options.seconds or (20 * SECONDS if options.tiny else SECONDS)
    bench = Bench(
        device=device,
        tiny=options.tiny,
        out=options.out,
        ends=time.monotonic() + seconds,
        commit=options.commit,
    )
    try:
        for name in SECTIONS:
            if name in options.only:
                run_section(bench, name)
    finally:
        print("\n".join(table(bench)), flush=True)


def _out_of_time(*_: object) -> None:
    raise OutOfTimeError


if __name__ == "__main__":
    main()
