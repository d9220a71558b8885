"""Gemma-3, the language model, in plain torch; parameters bear the names of its published files.

    ids -> embed, times the root of the width -> 6 x (5 local layers, 1 global) -> norm
    layer:  x + norm(attention(norm(x))),  then the same with a gated feed-forward

Local layers see a window of earlier words and turn their positions fast; global ones see all of them, slowly.
Importing another implementation took longer than generating a small clip, hence this one; a test holds it
equal to that of `transformers`.

Source: Gemma Team 2025, "Gemma 3 Technical Report", arXiv 2503.19786, section 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.errors import ConfigError

LayerKind = Literal["sliding_attention", "full_attention"]
KINDS: tuple[LayerKind, ...] = ("sliding_attention", "full_attention")
INITIAL_STD = 0.02  # of new weights
GLOBAL_EVERY = 6  # layers, where a configuration does not list them

Hidden = Float[Tensor, "b s d"]
Masks = Mapping[str, Bool[Tensor, "b 1 q s"]]


class Frequencies(NamedTuple):
    """How fast positions turn the pairs of a head."""

    theta: float
    factor: float = 1.0  # positions are divided by it


@dataclass(frozen=True, kw_only=True)
class Gemma3Config:
    """What shapes the network. Defaults are those that published configurations leave out."""

    vocab_size: int = 262_208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    query_pre_attn_scalar: float = 256.0
    rms_norm_eps: float = 1e-6
    sliding_window: int = 4096
    layer_types: tuple[LayerKind, ...] = ()
    frequencies: Mapping[str, Frequencies]
    attention_bias: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Gemma3Config":
        """Read a `gemma3_text` configuration, as files of any age have it.

        Raises:
            ConfigError: A value is of the wrong kind, or asks for something that no Gemma-3 has.
        """
        numbers = {
            name: _number(data, name, default)
            for name, default in (
                ("vocab_size", 262_208),
                ("hidden_size", 2304),
                ("intermediate_size", 9216),
                ("num_hidden_layers", 26),
                ("num_attention_heads", 8),
                ("num_key_value_heads", 4),
                ("head_dim", 256),
                ("sliding_window", 4096),
            )
        }
        activation = data.get("hidden_activation", "gelu_pytorch_tanh")
        if activation != "gelu_pytorch_tanh":
            raise ConfigError(f"hidden_activation={activation!r} is not Gemma-3's 'gelu_pytorch_tanh'")
        return cls(
            **numbers,
            query_pre_attn_scalar=_number(data, "query_pre_attn_scalar", 256.0, float),
            rms_norm_eps=_number(data, "rms_norm_eps", 1e-6, float),
            attention_bias=bool(data.get("attention_bias", False)),
            layer_types=_layer_types(data, numbers["num_hidden_layers"]),
            frequencies={kind: _frequencies(data, kind) for kind in KINDS},
        )


class KeysValues(NamedTuple):
    """What one layer remembers of the words so far, (b, heads, s, head_dim)."""

    keys: Tensor
    values: Tensor


class Gemma3(nn.Module):
    """The language model without its head."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens: nn.Embedding = nn.Embedding.from_pretrained(table, freeze=False)  # type: ignore[no-untyped-call]
        self.layers = nn.ModuleList(Layer(config, kind) for kind in config.layer_types)
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        if not table.is_meta:  # drawing normal numbers on `meta` would import torch's compiler, for seconds
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=INITIAL_STD)

    def forward(
        self,
        input_ids: Int[Tensor, "b q"],
        masks: Masks,
        positions: Int[Tensor, " q"],
        past: Sequence[KeysValues] | None = None,
    ) -> tuple[list[Tensor], list[KeysValues]]:
        """Run all layers.

        Args:
            masks: By kind of layer, which words (those of `past` first) each of these hears.
            past: What `forward` returned for the words before.

        Returns:
            The hidden states: embeddings, then one per layer, the last one normed; and what comes of `past`.
        """
        weight = self.embed_tokens.weight
        x: Tensor = self.embed_tokens(input_ids)
        x = x * torch.tensor(self.config.hidden_size**0.5).to(x)
        turns = {kind: _turns(self.config, kind, positions, weight.dtype) for kind in masks}
        states, remembered = [x], []
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            before = None if past is None else past[index]
            x, kept = layer(x, masks[layer.kind], turns[layer.kind], before)
            states.append(x)
            remembered.append(kept)
        states[-1] = self.norm(x)
        return states, remembered


class Turns(NamedTuple):
    """Cosine and sine of every position's angles, (q, head_dim)."""

    cos: Tensor
    sin: Tensor


class Layer(nn.Module):
    """Attention and a gated feed-forward, each normed before and behind."""

    def __init__(self, config: Gemma3Config, kind: LayerKind) -> None:
        super().__init__()
        self.kind = kind
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = SelfAttention(config)
        self.mlp = GatedFeedForward(width, config.intermediate_size)
        self.input_layernorm = Norm(width, eps)
        self.post_attention_layernorm = Norm(width, eps)
        self.pre_feedforward_layernorm = Norm(width, eps)
        self.post_feedforward_layernorm = Norm(width, eps)

    def forward(
        self, x: Hidden, mask: Bool[Tensor, "b 1 q s2"], turns: Turns, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Pass some words on, and what the layer remembers with them."""
        heard, remembered = self.self_attn(self.input_layernorm(x), mask, turns, past)
        x = x + self.post_attention_layernorm(heard)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x, remembered


class SelfAttention(nn.Module):
    """Several query heads share a head of keys and values; queries and keys are normed per head."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        width, size, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.scale = config.query_pre_attn_scalar**-0.5
        self.head_dim = size
        self.q_proj = nn.Linear(width, config.num_attention_heads * size, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * size, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * size, width, bias=bias)
        self.q_norm = Norm(size, config.rms_norm_eps)
        self.k_norm = Norm(size, config.rms_norm_eps)

    def forward(
        self, x: Hidden, mask: Bool[Tensor, "b 1 q s2"], turns: Turns, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Hear the words that the mask allows."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (b, heads, s, head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _turned(self.q_norm(q), turns), _turned(self.k_norm(k), turns)
        if past is not None:
            k, v = torch.cat([past.keys, k], dim=2), torch.cat([past.values, v], dim=2)
        shared = q.shape[1] // k.shape[1]
        keys, values = (part.repeat_interleave(shared, dim=1) for part in (k, v))
        heard = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=self.scale)
        out: Tensor = self.o_proj(heard.transpose(1, 2).flatten(2))
        return out, KeysValues(k, v)


class GatedFeedForward(nn.Module):
    """One projection gates another."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Hidden) -> Hidden:
        """Transform every word by itself."""
        out: Tensor = self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
        return out


class Norm(nn.Module):
    """Root-mean-square norm, in float32, with a weight that is a distance from one."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Norm the last axis."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + self.weight.float())).to(x.dtype)


def _turns(config: Gemma3Config, kind: str, positions: Tensor, dtype: torch.dtype) -> Turns:
    theta, factor = config.frequencies[kind]
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    speeds = (1 / theta**pairs / factor).to(positions.device)
    angles = positions.float()[:, None] * speeds
    angles = torch.cat([angles, angles], dim=-1)
    return Turns(angles.cos().to(dtype), angles.sin().to(dtype))


def _turned(x: Tensor, turns: Turns) -> Tensor:
    """Rotate pairs of elements that are half a head apart (Su et al. 2021, eq. 34)."""
    first, second = x.chunk(2, dim=-1)
    return x * turns.cos + torch.cat([-second, first], dim=-1) * turns.sin


def _number(data: Mapping[str, Any], name: str, default: Any, kind: type = int) -> Any:
    value = data.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or kind(value) != value:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name}={value!r} is not {what} above 0")
    return kind(value)


def _layer_types(data: Mapping[str, Any], count: int) -> tuple[LayerKind, ...]:
    listed = data.get("layer_types")
    if listed is None:
        every = _number(data, "sliding_window_pattern", GLOBAL_EVERY)
        return tuple(KINDS[int((index + 1) % every == 0)] for index in range(count))
    if len(listed) != count or any(kind not in KINDS for kind in listed):
        raise ConfigError(f"layer_types lists {len(listed)} layers of {count}; each is one of {KINDS}")
    return tuple(listed)


def _frequencies(data: Mapping[str, Any], kind: LayerKind) -> Frequencies:
    """Find how positions turn in one kind of layer; before 2026 files spelled it in other fields."""
    newer = data.get("rope_parameters")
    if isinstance(newer, Mapping):
        entry = newer.get(kind) or {}
        theta = 1e6 if kind == "full_attention" else 1e4
        return _scaled(entry, float(entry.get("rope_theta", theta)))
    if kind == "sliding_attention":
        return Frequencies(float(data.get("rope_local_base_freq") or 1e4))
    return _scaled(data.get("rope_scaling") or {}, float(data.get("rope_theta") or 1e6))


def _scaled(entry: Mapping[str, Any], theta: float) -> Frequencies:
    kind = entry.get("rope_type", entry.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConfigError(f"rope_type={kind!r} is not one of 'default', 'linear'")
    return Frequencies(theta, float(entry.get("factor", 1.0)) if kind == "linear" else 1.0)
