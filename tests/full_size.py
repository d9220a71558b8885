"""Networks of full size without memory, and the bytes that their work takes beside them."""

import contextlib
import functools
from unittest import mock

import torch
from torch.nn import functional as F

from four_passes import four_passes
from live_bytes import LiveBytes
from soundstage.checkpoints.released import planned_configs
from soundstage.core.types import AV
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.transformer.config import TransformerConfig
from soundstage.models.transformer.inputs import Passes, StreamInput, Text
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.modulation import NoiseLevels
from soundstage.models.video_vae.config import VideoVAEConfig
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.tiling import decode_streamed, encode_tiled
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.model import build_vocoder
from soundstage.nn import linear
from soundstage.nn.kernels import choice
from soundstage.nn.kernels.choice import TORCH, TritonKernels, use_kernels
from soundstage.nn.lora import Addition, LoraLinear, LowRank
from soundstage.runtime.quantization import fp8
from soundstage.runtime.quantization.layer import QuantizedLinear
from soundstage.runtime.quantization.registry import find_quantization, quantizable

TEXT = 1024  # tokens


def live(work, *networks, kernels=None, has_fp8=True):
    """Return the most bytes that some work holds beside the weights of networks.

    `kernels` are those of a GPU that the networks are to run as if on: "triton" or "torch".
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attend))
        if kernels is not None:
            _as_on_gpu(stack, networks, kernels, has_fp8=has_fp8)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.device("meta"))
        counted = stack.enter_context(LiveBytes().ignore(*networks))
        work()
    return counted.peak


def _as_on_gpu(stack, networks, kernels, *, has_fp8):
    """Take the ways that are taken on a GPU; Triton's kernels make their results and are not started."""
    for network in networks:
        use_kernels(network, TritonKernels() if kernels == "triton" else TORCH)
        stack.callback(use_kernels, network, TORCH)
    swaps = [
        (F, "rms_norm", lambda x, *_: torch.empty_like(x)),
        (linear, "_is_on_gpu", lambda _: True),
        (choice, "_is_on_gpu", lambda _: kernels == "triton"),
        (fp8, "_can_multiply", lambda *_: has_fp8),
        (torch.cuda, "get_device_capability", lambda *_: (9, 0) if has_fp8 else (8, 0)),
    ]
    if kernels == "triton":
        from soundstage.nn.kernels import launching

        swaps.append((launching, "launch", lambda *_, **__: None))
    for place, name, stand_in in swaps:
        stack.enter_context(mock.patch.object(place, name, stand_in))


def _attend(query, key, value, *_, **__):
    """Take the memory of a GPU's kernel; on `meta`, torch would hold all pairs of tokens."""
    return torch.empty_like(query)


def part(make, dtype):
    with torch.device("meta"):
        return make().to(dtype).requires_grad_(False).eval()


@functools.cache
def transformer(generation, quantize=None, num_layers=2, is_joined=True):
    """Build a network of few blocks; "fp8-fixed" is fp8 with scales of inputs, as official files have it.

    Projections are not joined where layers are quantised or blocks streamed.
    """
    config = TransformerConfig.from_header(
        planned_configs()[generation]["transformer"] | {"num_layers": num_layers}
    )
    model = part(lambda: AVTransformer(config), torch.bfloat16)
    if quantize is None:
        if is_joined:
            model.join_projections()
        return model
    for name, layer in quantizable(model, inside="transformer_blocks").items():
        if quantize == "fp8-fixed":
            sizes, like = (layer.in_features, layer.out_features), {"dtype": torch.bfloat16, "device": "meta"}
            twin = fp8.StoredFp8Linear(*sizes, bias=True, has_input_scale=True, **like)
        else:
            twin = find_quantization(quantize).make(layer, torch.bfloat16)
        twin.bias = layer.bias
        model.set_submodule(name, twin)
    return model


def beside(model, rank):
    """Put branches of a LoRA beside all layers."""
    kinds = (torch.nn.Linear, QuantizedLinear)
    with torch.device("meta"):
        for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]:
            factors = torch.empty(rank, layer.in_features), torch.empty(layer.out_features, rank)
            addition = Addition(LowRank(down=factors[0], up=factors[1]), 1.0)
            model.set_submodule(name, LoraLinear(layer, [addition], torch.bfloat16))
    return model


def denoising(
    model, tokens, *, num_passes=4, num_clips=1, rows_at_once=1, keeps_texts=False, cache=None, **gpu
):
    """Count evaluations of guidance passes, as a denoiser asks for them: one, or three with a step cache."""
    config = model.config

    def stream(name, count):
        shape = config.video if name == "video" else config.audio
        width = config.caption_channels or shape.context_dim
        context = torch.empty(num_clips, TEXT, width, dtype=torch.bfloat16)
        return StreamInput(
            latents=torch.empty(num_clips, count, shape.in_channels),
            timesteps=torch.empty(num_clips, count),
            sigma=torch.empty(num_clips),
            positions=torch.empty(1, len(shape.max_pos), count, 2),
            context=context,
            levels=NoiseLevels(torch.empty(1), None),
        )

    with torch.device("meta"):
        given = AV(stream("video", tokens.video), stream("audio", tokens.audio))
        negative = given.map(lambda s: Text(context=torch.empty_like(s.context)))
    branches = four_passes(AV(), negative, config.num_layers // 2)
    chosen = branches[:num_passes] if num_passes > 1 else branches[1:2]

    def work():
        ropes = model.prepare(given.video.positions, given.audio.positions)
        kept = Kept() if keeps_texts else None
        for _ in range(1 if cache is None else 3):
            model(
                given.video,
                given.audio,
                None,
                ropes,
                passes=Passes(branches=chosen, kept=kept, rows_at_once=rows_at_once, cache=cache),
            )

    return live(work, model, **gpu)


@functools.cache
def video_vae(generation):
    config = VideoVAEConfig.from_header(planned_configs()[generation]["vae"])
    return part(lambda: VideoVAE(config), torch.bfloat16)


def decoding(vae, cells, plan):
    with torch.device("meta"):
        latents = torch.empty(1, vae.config.latent_channels, *cells, dtype=torch.bfloat16)

    def work():
        for pixels in decode_streamed(vae, latents, plan):
            piece = pixels[0].float()
            del pixels, piece

    return live(work, vae)


def encoding(vae, frames, height, width):
    with torch.device("meta"):
        pixels = torch.empty(1, 3, frames, height, width, dtype=torch.bfloat16)
    return live(lambda: encode_tiled(vae, pixels), vae) + pixels.nbytes


def sounding(generation, seconds):
    config = planned_configs()[generation]
    vae = part(lambda: AudioVAE(AudioVAEConfig.from_header(config["audio_vae"])), torch.float32)
    vocoder = part(lambda: build_vocoder(VocoderConfig.from_header(config["vocoder"])), torch.float32)
    geometry, count = vae.config.geometry(), 25 * seconds
    with torch.device("meta"):
        latents = torch.empty(1, geometry.channels, count, geometry.token_channels // geometry.channels)

    def work():
        vocoder(vae.decode(latents))

    return live(work, vae, vocoder)
