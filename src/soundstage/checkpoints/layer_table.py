"""The linear layers of the released transformers, by official name: what LoRAs may adapt. No torch.

48 blocks and the layers around them; the generations differ in a few names and in the rows of two layers.
"""

import functools
from collections.abc import Iterator, Mapping

Shape = tuple[int, int]  # (outputs, inputs), as a weight is stored

GENERATIONS = ("2.0", "2.3", "2.5")

_NUM_BLOCKS = 48
_VIDEO, _AUDIO, _HEADS = 4096, 2048, 32
_TOKEN, _SINUSOID, _CAPTION = 128, 256, 3840


@functools.cache
def released_layers(generation: str) -> Mapping[str, Shape]:
    """List the linear layers of a released transformer: "2.0", "2.3" or "2.5"."""
    is_newer = generation != "2.0"  # gates per head, modulated text
    layers = dict(_outer(is_newer))
    for index in range(_NUM_BLOCKS):
        layers |= {f"transformer_blocks.{index}.{name}": shape for name, shape in _block(is_newer)}
    return layers


@functools.cache
def all_names() -> frozenset[str]:
    """Collect the names of all generations."""
    return frozenset(name for generation in GENERATIONS for name in released_layers(generation))


def _outer(is_newer: bool) -> Iterator[tuple[str, Shape]]:
    for prefix, dim in (("", _VIDEO), ("audio_", _AUDIO)):
        yield f"{prefix}patchify_proj", (dim, _TOKEN)
        yield f"{prefix}proj_out", (_TOKEN, dim)
        yield from _adaln(f"{prefix}adaln_single", dim, 9 if is_newer else 6)
        if is_newer:
            yield from _adaln(f"{prefix}prompt_adaln_single", dim, 2)
        else:
            yield f"{prefix}caption_projection.linear_1", (dim, _CAPTION)
            yield f"{prefix}caption_projection.linear_2", (dim, dim)
    yield from _adaln("av_ca_video_scale_shift_adaln_single", _VIDEO, 4)
    yield from _adaln("av_ca_audio_scale_shift_adaln_single", _AUDIO, 4)
    yield from _adaln("av_ca_a2v_gate_adaln_single", _VIDEO, 1)
    yield from _adaln("av_ca_v2a_gate_adaln_single", _AUDIO, 1)


def _adaln(name: str, dim: int, num_rows: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.emb.timestep_embedder.linear_1", (dim, _SINUSOID)
    yield f"{name}.emb.timestep_embedder.linear_2", (dim, dim)
    yield f"{name}.linear", (num_rows * dim, dim)


def _block(is_gated: bool) -> Iterator[tuple[str, Shape]]:
    for prefix, dim in (("", _VIDEO), ("audio_", _AUDIO)):
        yield from _attention(f"{prefix}attn1", dim, dim, dim, is_gated)
        yield from _attention(f"{prefix}attn2", dim, dim, dim, is_gated)
        yield f"{prefix}ff.net.0.proj", (4 * dim, dim)
        yield f"{prefix}ff.net.2", (dim, 4 * dim)
    yield from _attention("audio_to_video_attn", _VIDEO, _AUDIO, _AUDIO, is_gated)
    yield from _attention("video_to_audio_attn", _AUDIO, _VIDEO, _AUDIO, is_gated)


def _attention(
    name: str, query: int, context: int, inner: int, is_gated: bool
) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.to_q", (inner, query)
    yield f"{name}.to_k", (inner, context)
    yield f"{name}.to_v", (inner, context)
    yield f"{name}.to_out.0", (query, inner)
    if is_gated:
        yield f"{name}.to_gate_logits", (_HEADS, query)
