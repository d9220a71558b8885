"""Give a loaded transformer what it computes with, by name, and say what was chosen."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from soundstage.core.errors import RequestError
from soundstage.models.transformer.model import AVTransformer
from soundstage.nn.attention_backends import choose_attention, use_attention
from soundstage.nn.kernels.choice import choose_kernels, use_kernels
from soundstage.pipelines.compute import Compute
from soundstage.pipelines.denoiser import Forward
from soundstage.runtime.compile import CompiledTransformer, compile_blocks
from soundstage.runtime.cuda_graphs import GraphedTransformer
from soundstage.runtime.offload import StreamedBlocks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What a transformer computes with."""

    attention: str  # name of the backend
    kernels: str
    is_exact: bool  # False: attention is approximate
    forward: Forward  # the transformer, or what stands in for it


def _off(transformer: AVTransformer, _: torch.device) -> Forward:
    return transformer


def _blocks(transformer: AVTransformer, _: torch.device) -> Forward:
    compile_blocks(transformer)
    return CompiledTransformer(transformer)


def _graphs(transformer: AVTransformer, device: torch.device) -> Forward:
    if device.type != "cuda":
        raise RequestError(f"compile 'graphs' needs a GPU, and the device is {device.type}; use 'blocks'")
    if isinstance(transformer.transformer_blocks, StreamedBlocks):
        raise RequestError(
            "compile 'graphs' needs blocks that stay on the GPU, and some are streamed to it; use 'blocks', "
            "or a format that fits"
        )
    return GraphedTransformer(transformer)


COMPILERS: Mapping[str, Callable[[AVTransformer, torch.device], Forward]] = {
    "off": _off,
    "blocks": _blocks,
    "graphs": _graphs,
}


def equip(
    transformer: AVTransformer, compute: Compute, device: torch.device, dtype: torch.dtype
) -> Equipment:
    """Choose by name and device, and set the transformer up.

    Raises:
        RequestError: Something that was asked for is unknown or cannot run here; says why and what can.
    """
    if compute.compile not in COMPILERS:
        raise RequestError(f"compile {compute.compile!r} is not one of {', '.join(COMPILERS)}")
    attention = choose_attention(compute.attention, device, dtype)
    kernels = choose_kernels(compute.kernels, device)
    use_attention(transformer, attention)
    use_kernels(transformer, kernels)
    forward = COMPILERS[compute.compile](transformer, device)
    logger.info("attention %s, kernels %s, compile %s", attention.name, kernels.name, compute.compile)
    return Equipment(
        attention=attention.name, kernels=kernels.name, is_exact=attention.exact, forward=forward
    )
