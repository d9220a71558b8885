"""Tiny transformers with random weights and something to feed them."""

import functools
from dataclasses import replace

import torch
from torch import Tensor

import tiny
from soundstage.core.types import AV
from soundstage.models.transformer.config import STREAMS, TransformerConfig
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation, StreamInput, Text
from soundstage.models.transformer.model import AVTransformer

GENERATIONS = ("2.0", "2.3", "2.5")
NUM_TOKENS = {"video": 8, "audio": 6}
FIRST_FRAME = 4  # video tokens of the first latent frame
ISOLATED = Perturbation(skip_a2v="all", skip_v2a="all")
PERTURBED = Perturbation(skip_video_self_attention=frozenset([1]), skip_audio_self_attention=frozenset([1]))
PERTURBATIONS = {
    "uncond": Perturbation(),
    "cond": Perturbation(),
    "perturbed": PERTURBED,
    "isolated": ISOLATED,
}


def config(generation: str, **changes) -> TransformerConfig:
    return TransformerConfig.from_header(tiny.config(generation)["transformer"] | changes)


def transformer(generation: str, streams: tuple = STREAMS, **changes) -> AVTransformer:
    """Build a new transformer; the weights of a configuration are always the same."""
    with torch.device("meta"):
        model = AVTransformer(config(generation, **changes), streams)
    state = _weights(generation, **changes)
    model.load_state_dict({name: state[name].clone() for name in model.state_dict()}, assign=True)
    return model.eval()


@functools.cache
def _weights(generation: str, **changes) -> dict[str, Tensor]:
    model = AVTransformer(config(generation, **changes))
    tiny.randomise(model, generation)
    return model.state_dict()


def stream_input(shape: TransformerConfig, name: str, batch: int = 2, **changes) -> StreamInput:
    """Make random tokens of one stream; the same for the same arguments."""
    stream = shape.video if name == "video" else shape.audio
    generator = torch.Generator().manual_seed(len(name))
    n, axes = NUM_TOKENS[name], len(stream.max_pos)
    sigma = torch.tensor([0.8, 0.3, 0.55])[:batch]
    starts = torch.rand(1, axes, n, 1, generator=generator) * torch.tensor([4.0, 200, 200])[:axes, None, None]
    if name == "video":  # tokens of a latent frame have one time
        starts[:, 0] = starts[:, 0, ::FIRST_FRAME].repeat_interleave(FIRST_FRAME, dim=1)[:, :n]
    keyframes = (torch.arange(n) < FIRST_FRAME).float()[None, :, None].expand(batch, -1, -1)
    made = StreamInput(
        latents=torch.randn(batch, n, stream.in_channels, generator=generator),
        timesteps=sigma[:, None].expand(batch, n),
        sigma=sigma,
        positions=torch.cat([starts, starts + 0.3], dim=-1),
        context=torch.randn(batch, 5, shape.caption_channels or stream.context_dim, generator=generator),
        keyframe_mask=keyframes if name == "video" and shape.keyframe_embedding else None,
    )
    return replace(made, **changes)


def inputs(shape: TransformerConfig, batch: int = 2) -> tuple[StreamInput, StreamInput]:
    return stream_input(shape, "video", batch), stream_input(shape, "audio", batch)


def other_texts(shape: TransformerConfig) -> AV[Text]:
    return AV(*(Text(context=stream_input(shape, name).context[:1].flip(2)) for name in ("video", "audio")))


def guided(shape: TransformerConfig, names: tuple[str, ...] = tuple(PERTURBATIONS), **options) -> Passes:
    """Make the passes of a guided step; `uncond` reads other texts, the others the streams' own."""
    prompt = AV(*(Text(context=stream_input(shape, name).context[:1]) for name in ("video", "audio")))
    texts = dict.fromkeys(PERTURBATIONS, prompt) | {"uncond": other_texts(shape)}
    return Passes(
        branches=tuple(Branch(perturbation=PERTURBATIONS[n], texts=texts[n]) for n in names), **options
    )


def item(stream: StreamInput, index: int) -> StreamInput:
    """Take one item of a batch."""
    rows = {
        name: getattr(stream, name)[index : index + 1]
        for name in ("latents", "timesteps", "sigma", "context", "context_mask", "keyframe_mask")
        if getattr(stream, name) is not None
    }
    return replace(stream, **rows)
