"""A Gemma-3 in a GGUF file of llama.cpp: names, configuration and norms as its own files have them.

Its converter stores what norms multiply by, one more than the weights of the published files; it leaves out
what llama.cpp knows of the architecture, which are the values of Gemma-3's report here.

Source: the names and keys of the `gguf` package (`MODEL_ARCH.GEMMA3`, `Keys`); Gemma Team 2025, "Gemma 3
Technical Report", arXiv 2503.19786.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from soundstage.checkpoints.header import TensorEntry

ARCHITECTURE = "gemma3"
_WHOLE = {"token_embd": "embed_tokens", "output_norm": "norm"}
_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_LAYERS_OF_27B, _GLOBAL_EVERY = 62, 6


def published_name(name: str) -> str:
    """Spell a tensor's name as the published files do; a name that no Gemma-3 has stays as it is."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name
    layer, leaf, kind = found.groups()
    if layer is None:
        if leaf == "output":
            return f"lm_head.{kind}"
        return f"model.{_WHOLE[leaf]}.{kind}" if leaf in _WHOLE else name
    return f"model.layers.{layer}.{_OF_A_LAYER[leaf]}.{kind}" if leaf in _OF_A_LAYER else name


def published_tensors(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Rename all tensors, and note what is to be taken off the norms."""
    return {
        published_name(name): replace(entry, surplus=1.0) if name.endswith("norm.weight") else entry
        for name, entry in tensors.items()
    }


def published_config(fields: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> dict[str, Any]:
    """Write the file's fields as a `gemma3_text` configuration; what is absent is left to its defaults."""

    def get(key: str, default: Any = None) -> Any:
        return fields.get(f"{ARCHITECTURE}.{key}", default)

    epsilon = get("attention.layer_norm_rms_epsilon")
    width, layers, heads = get("embedding_length"), get("block_count"), get("attention.head_count")
    head_dim = get("attention.key_length")
    config = {
        "model_type": "gemma3_text",
        "vocab_size": tensors["token_embd.weight"].shape[0] if "token_embd.weight" in tensors else None,
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": head_dim,
        "query_pre_attn_scalar": _query_scalar(get("attention.scale"), width, layers, heads, head_dim),
        "rms_norm_eps": None if epsilon is None else float(f"{epsilon:.6g}"),  # stored in single precision
        "sliding_window": get("attention.sliding_window"),
        "sliding_window_pattern": _GLOBAL_EVERY,
        "rope_theta": get("rope.freq_base", 1e6),
        "rope_local_base_freq": get("rope.freq_base_swa", 1e4),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    if get("rope.scaling.type", "none") != "none":
        scaling = {"rope_type": get("rope.scaling.type"), "factor": get("rope.scaling.factor", 1.0)}
        config["rope_scaling"] = scaling
    pattern = get("attention.sliding_window_pattern")
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        config["sliding_window_pattern"] = pattern
    elif isinstance(pattern, list):  # one truth per layer
        config["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
    return {name: value for name, value in config.items() if value is not None}


def _query_scalar(scale: Any, width: Any, layers: Any, heads: Any, head_dim: Any) -> float | None:
    """Find what queries are divided by, squared: the head's size, but for the largest model."""
    if scale:
        return float(round(1 / scale**2, 6))
    if layers == _LAYERS_OF_27B and width and heads:
        return float(width / heads)
    return None if head_dim is None else float(head_dim)
