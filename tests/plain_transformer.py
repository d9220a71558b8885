"""The transformer written out plainly, one pass at a time: what every exact saving must give the same as.

Nothing is shared, kept, joined or changed in place here, every token's noise level goes through the networks,
and every product is written as one. It takes the weights of an `AVTransformer` of generation 2.0, 2.3 or 2.5.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.types import AV
from soundstage.models.transformer.inputs import Perturbation, StreamInput
from soundstage.models.transformer.model import AVTransformer
from soundstage.nn.attention import Attention
from soundstage.nn.rope import rope_table


def velocities(
    model: AVTransformer, video: StreamInput, audio: StreamInput, perturbation: Perturbation | None = None
) -> AV[Tensor]:
    """Predict the velocities of one pass."""
    off = perturbation or Perturbation()
    config, given = model.config, {"video": video, "audio": audio}
    x, modulation, embedded, cross, gate, text, text_modulation = ({} for _ in range(7))
    ropes, seconds = {}, {}
    for name, stream in given.items():
        layers, other = model.layers(name), given["audio" if name == "video" else "video"]
        x[name] = model.project_in(name, stream)
        modulation[name], embedded[name] = ada(layers.adaln, stream.timesteps * config.timestep_scale)
        cross[name], _ = ada(layers.cross_adaln, stream.timesteps * config.timestep_scale)
        gate[name], _ = ada(layers.cross_gate_adaln, other.sigma[:, None] * config.gate_timestep_scale)
        text[name] = stream.context
        if layers.project_context is not None:
            wide = F.gelu(linear(layers.project_context.linear_1, stream.context), approximate="tanh")
            text[name] = linear(layers.project_context.linear_2, wide)
        text_modulation[name] = None
        if layers.context_adaln is not None:
            text_modulation[name], _ = ada(
                layers.context_adaln, stream.sigma[:, None] * config.timestep_scale
            )
        shape, middle = getattr(config, name), stream.positions.mean(-1)
        ladder = (config.rope_theta, config.rope_kind, config.rope_precision)
        ropes[name] = rope_table(middle, shape.max_pos, shape.dim, shape.heads, *ladder)
        inner = (config.audio.dim, config.audio.heads)
        seconds[name] = rope_table(middle[:, :1], config.cross_max_pos, *inner, *ladder)

    for index, block in enumerate(model.transformer_blocks):
        for name, skipped in (
            ("video", off.skip_video_self_attention),
            ("audio", off.skip_audio_self_attention),
        ):
            layers, rows = block.layers(name), modulation[name]
            shift, scale, out = (rows[..., i, :] + layers.table[i] for i in range(3))
            own = rms(x[name]) * (1 + scale) + shift
            heard = attend(layers.self_attention, own, own, ropes[name], ropes[name], is_in(index, skipped))
            x[name] = x[name] + out * heard

            own, words = rms(x[name]), text[name]
            if layers.context_table is not None:
                shift, scale, out = (rows[..., i, :] + layers.table[i] for i in range(6, 9))
                own = own * (1 + scale) + shift
                given_words = 0 if text_modulation[name] is None else text_modulation[name]
                shift, scale = (layers.context_table + given_words).unbind(-2)
                words = words * (1 + scale) + shift
            else:
                out = 1
            x[name] = x[name] + out * attend(layers.text_attention, own, words)

        v, a = rms(x["video"]), rms(x["audio"])
        tables = {
            "video": block.scale_shift_table_a2v_ca_video,
            "audio": block.scale_shift_table_a2v_ca_audio,
        }

        def side(name: str, y: Tensor, first: int, tables: dict = tables) -> Tensor:
            scale, shift = (cross[name][..., i, :] + tables[name][i] for i in (first, first + 1))
            return y * (1 + scale) + shift

        to_video = attend(
            block.audio_to_video_attn, side("video", v, 0), side("audio", a, 0),
            seconds["video"], seconds["audio"],
        )  # fmt: skip
        to_audio = attend(
            block.video_to_audio_attn, side("audio", a, 2), side("video", v, 2),
            seconds["audio"], seconds["video"],
        )  # fmt: skip
        for name, heard, skipped in (("video", to_video, off.skip_a2v), ("audio", to_audio, off.skip_v2a)):
            if not is_in(index, skipped):
                x[name] = x[name] + (gate[name][..., 0, :] + tables[name][4]) * heard

        for name in given:
            layers, rows = block.layers(name), modulation[name]
            shift, scale, out = (rows[..., i, :] + layers.table[i] for i in range(3, 6))
            own = rms(x[name]) * (1 + scale) + shift
            wide = F.gelu(linear(layers.feed_forward.net[0].proj, own), approximate="tanh")
            x[name] = x[name] + out * linear(layers.feed_forward.net[2], wide)

    results = {}
    for name in given:
        layers = model.layers(name)
        shift, scale = (embedded[name] + layers.table[i] for i in range(2))
        centred = F.layer_norm(x[name], x[name].shape[-1:], eps=config.norm_eps)
        results[name] = linear(layers.project_out, centred * (1 + scale) + shift)
    return AV(**results)


def is_in(index: int, blocks: frozenset | str) -> bool:
    return blocks == "all" or index in blocks


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    out = x @ layer.weight.T
    return out if layer.bias is None else out + layer.bias


def rms(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def ada(adaln: nn.Module, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Send the noise level of every token through the network, (b, n, rows, d) and (b, n, d)."""
    embedder = adaln.emb["timestep_embedder"]
    half = embedder.linear_1.in_features // 2
    angles = levels[..., None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    waves = torch.cat([angles.cos(), angles.sin()], -1)
    embedded = linear(embedder.linear_2, F.silu(linear(embedder.linear_1, waves)))
    return linear(adaln.linear, F.silu(embedded)).unflatten(-1, (-1, embedded.shape[-1])), embedded


def attend(attention: Attention, x: Tensor, context: Tensor, rope=None, context_rope=None, passthrough=False):
    """Attend head by head."""
    q = turn(rms(linear(attention.to_q, x), attention.q_norm.weight), rope, attention.heads)
    k = turn(rms(linear(attention.to_k, context), attention.k_norm.weight), context_rope, attention.heads)
    v = linear(attention.to_v, context)
    heads = []
    for q_head, k_head, v_head in zip(*(t.chunk(attention.heads, -1) for t in (q, k, v)), strict=True):
        shares = (q_head @ k_head.mT / math.sqrt(q_head.shape[-1])).softmax(-1)
        heads.append(v_head if passthrough else shares @ v_head)
    if attention.to_gate_logits is not None:
        gates = 2 * torch.sigmoid(linear(attention.to_gate_logits, x))
        heads = [head * gates[..., i : i + 1] for i, head in enumerate(heads)]
    return linear(attention.to_out[0], torch.cat(heads, -1))


def turn(x: Tensor, rope, heads: int) -> Tensor:
    """Rotate every head's first half against its second."""
    if rope is None:
        return x
    turned = []
    for head, cos, sin in zip(x.chunk(heads, -1), rope.cos.unbind(1), rope.sin.unbind(1), strict=True):
        first, second = head.chunk(2, -1)
        turned += [first * cos - second * sin, second * cos + first * sin]
    return torch.cat(turned, -1)
