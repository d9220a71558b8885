"""The ways in which LoRA files spell their keys, and the official layer names behind them. No torch.

| form | example |
|---|---|
| official | `diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight` |
| ComfyUI | `diffusion_model.transformer_blocks.0.attn1.to_q.lora_down.weight`, `.alpha`, `.dora_scale` |
| diffusers | `transformer.time_embed.linear.lora_A.weight`: names of its own around the blocks |
| PEFT | `base_model.model.transformer_blocks.0.attn1.to_q.lora_A.default.weight` |
| kohya | `lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight`: dots lost, found by known names |
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Role = Literal["down", "up", "alpha", "magnitude"]

# From diffusers' names around the blocks to the official ones; inside the blocks they are the same.
DIFFUSERS_NAMES = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}
_TO_DIFFUSERS = {official: theirs for theirs, official in DIFFUSERS_NAMES.items()}

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
_KOHYA = "lora_unet_"
_CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.", "text_embedding_projection.")
_TEXT_SIDE = (
    "video_embeddings_connector",
    "audio_embeddings_connector",
    "embeddings_connector",
    "text_embedding_projection",
    "connectors.",
    "video_connector",
    "audio_connector",
    "text_encoder",
    "lora_te",
)
_ROLE = re.compile(
    r"\.(?:lora_(?P<letter>[AB])(?:\.[^.]+)?\.weight"
    r"|lora[._](?P<word>down|up)\.weight"
    r"|(?P<alpha>alpha)"
    r"|(?P<magnitude>dora_scale|lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?))$"
)


class LoraKey(NamedTuple):
    """One key of a LoRA file, understood."""

    layer: str  # official name; for a layer that no generation has, what the file calls it
    role: Role
    form: str


def parse_key(key: str, spellings: Mapping[str, str]) -> LoraKey | None:
    """Understand a key; None if it is of no known form.

    Args:
        spellings: From `spellings_of`, for keys that lost their dots.
    """
    match = _ROLE.search(key)
    if match is None:
        return None
    stem, role = key[: match.start()], _role(match)
    path = strip_prefixes(stem)
    if path.startswith(_KOHYA):
        flat = path.removeprefix(_KOHYA)
        return LoraKey(spellings.get(flat, flat), role, "kohya")
    layer = official_layer(path)
    return LoraKey(layer, role, _form(stem, is_renamed=layer != path, role_word=match["word"]))


def official_keys(layer: str) -> tuple[str, str]:
    """Spell the keys of a layer's down and up factors as the official files do."""
    return f"diffusion_model.{layer}.lora_A.weight", f"diffusion_model.{layer}.lora_B.weight"


def is_text_side(key: str) -> bool:
    """Tell whether a key is for the text encoder or its connectors instead of the transformer."""
    return strip_prefixes(key).removeprefix(_KOHYA).startswith(_TEXT_SIDE)


def connector_layer(key: str) -> str | None:
    """Name the layer of the connectors that a key adapts, as they name it; None for other keys."""
    match = _ROLE.search(key)
    path = strip_prefixes(key[: match.start()]) if match else ""
    return path if path.startswith(_CONNECTORS) else None


def spellings_of(layers: Iterable[str]) -> dict[str, str]:
    """Write every layer's name without dots, as kohya does, in the official and in diffusers' naming."""
    spelled = {}
    for layer in layers:
        for name in (diffusers_layer(layer), layer):
            spelled[name.replace(".", "_")] = layer
    return spelled


def official_layer(path: str) -> str:
    """Translate a name from diffusers; official names stay as they are."""
    first, dot, rest = path.partition(".")
    return DIFFUSERS_NAMES.get(first, first) + dot + rest


def diffusers_layer(layer: str) -> str:
    """Translate an official name to diffusers'."""
    first, dot, rest = layer.partition(".")
    return _TO_DIFFUSERS.get(first, first) + dot + rest


def strip_prefixes(path: str) -> str:
    """Remove what programs put before the name of a layer."""
    for prefix in _PREFIXES:
        path = path.removeprefix(prefix)
    return path


def _role(match: re.Match[str]) -> Role:
    if match["alpha"]:
        return "alpha"
    if match["magnitude"]:
        return "magnitude"
    return "down" if match["letter"] == "A" or match["word"] == "down" else "up"


def _form(stem: str, *, is_renamed: bool, role_word: str | None) -> str:
    if stem.startswith("base_model.model."):
        return "PEFT"
    if is_renamed or stem.startswith("transformer."):
        return "diffusers"
    return "ComfyUI" if role_word else "official"
