"""Configuration of the text side: which features are read from the text encoder, and the two connectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from soundstage.core.errors import ConfigError
from soundstage.nn.rope import Precision, RopeKind

FeatureKind = Literal["layer_range", "token_rms"]  # LTX-2.0; LTX-2.3 and later

# All of these in a header mean per-token features, none of them the older ones; a mixture means neither.
TOKEN_RMS_KEYS = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
GEMMA_12B = {"hidden_size": 3840, "num_hidden_layers": 48}  # what a header means that does not say


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig:
    """The small bidirectional transformer that turns text features into one stream's context."""

    num_heads: int
    head_dim: int
    num_layers: int
    num_registers: int = 128
    gated: bool = False
    ff_bias: bool = True
    norm_output: bool = True
    registers_std: float = 1.0  # of their initial values
    max_position: float = 4096.0  # token index at which the rotary coordinate reaches +1
    rope_theta: float = 10_000.0
    rope_kind: RopeKind = "split"
    rope_precision: Precision = "float64"

    def __post_init__(self) -> None:
        for name in ("num_heads", "head_dim", "num_layers", "num_registers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"connector {name}={getattr(self, name)} must be at least 1")
        if self.head_dim % 2:
            raise ConfigError(f"connector head_dim={self.head_dim} must be even: rotation works on pairs")

    @property
    def dim(self) -> int:
        """Width of the connector and of the context it gives."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Everything that shapes a tensor between the text encoder and the diffusion transformer."""

    hidden_size: int  # of the text encoder
    num_states: int  # its layers, plus one for the embeddings
    features: FeatureKind
    video: ConnectorConfig
    audio: ConnectorConfig

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.num_states < 2:
            raise ConfigError(
                f"a text encoder of width {self.hidden_size} with {self.num_states} hidden states cannot be"
            )
        if self.features == "layer_range" and self.video.dim != self.audio.dim:
            raise ConfigError(
                f"LTX-2.0 text features feed both connectors, but these are {self.video.dim} (video) "
                f"and {self.audio.dim} (audio) wide"
            )
        if self.video.num_registers != self.audio.num_registers:
            raise ConfigError("the video and the audio connector must have the same number of registers")

    @property
    def num_registers(self) -> int:
        """Text lengths must be a multiple of this."""
        return self.video.num_registers

    @property
    def num_features(self) -> int:
        """Columns of the text projections."""
        return self.hidden_size * self.num_states

    @classmethod
    def from_header(
        cls, section: Mapping[str, Any], text_encoder: Mapping[str, Any] | None = None
    ) -> "TextConfig":
        """Read the `transformer` section of a checkpoint header.

        Args:
            text_encoder: `hidden_size` and `num_hidden_layers` of the text encoder, as its own configuration
                states them. Official headers do not mention them; without this they go with Gemma-3 12B.

        Raises:
            ConfigError: The header is of no known generation.
        """
        stated = {key: section[f"text_{key}"] for key in GEMMA_12B if f"text_{key}" in section}
        size = GEMMA_12B | stated | dict((text_encoder or {}).get("text_config", text_encoder or {}))
        shared = {
            "num_registers": section.get("connector_num_learnable_registers", 128),
            "gated": section.get("connector_apply_gated_attention", False),
            "ff_bias": section.get("connector_ff_bias", True),
            "norm_output": section.get("connector_norm_output", True),
            "registers_std": float(section.get("connector_learnable_registers_std", 1)),
            "max_position": float(section.get("connector_positional_embedding_max_pos", [4096])[0]),
            "rope_theta": float(section.get("positional_embedding_theta", 10_000.0)),
            "rope_kind": section.get("rope_type", "split"),
            "rope_precision": section.get("frequencies_precision", "float64"),
        }
        video = {
            "num_heads": section.get("connector_num_attention_heads", 30),
            "head_dim": section.get("connector_attention_head_dim", 128),
            "num_layers": section.get("connector_num_layers", 2),
        }
        audio = {
            "num_heads": section.get("audio_connector_num_attention_heads", video["num_heads"]),
            "head_dim": section.get("audio_connector_attention_head_dim", video["head_dim"]),
            "num_layers": section.get("audio_connector_num_layers", video["num_layers"]),
        }
        return cls(
            hidden_size=size["hidden_size"],
            num_states=size["num_hidden_layers"] + 1,
            features=_feature_kind(section),
            video=ConnectorConfig(**video, **shared),
            audio=ConnectorConfig(**audio, **shared),
        )

    def to_header(self) -> dict[str, Any]:
        """Write the keys of the `transformer` section that `from_header` reads back."""
        header = {
            "text_hidden_size": self.hidden_size,
            "text_num_hidden_layers": self.num_states - 1,
            "use_embeddings_connector": True,
            "connector_num_attention_heads": self.video.num_heads,
            "connector_attention_head_dim": self.video.head_dim,
            "connector_num_layers": self.video.num_layers,
            "audio_connector_num_attention_heads": self.audio.num_heads,
            "audio_connector_attention_head_dim": self.audio.head_dim,
            "audio_connector_num_layers": self.audio.num_layers,
            "connector_num_learnable_registers": self.video.num_registers,
            "connector_apply_gated_attention": self.video.gated,
            "connector_ff_bias": self.video.ff_bias,
            "connector_norm_output": self.video.norm_output,
            "connector_learnable_registers_std": self.video.registers_std,
            "connector_positional_embedding_max_pos": [self.video.max_position],
            "positional_embedding_theta": self.video.rope_theta,
            "rope_type": self.video.rope_kind,
            "frequencies_precision": self.video.rope_precision,
        }
        if self.features == "token_rms":
            header |= TOKEN_RMS_KEYS | {"text_encoder_norm_type": "per_token_rms"}
        return header


def _feature_kind(section: Mapping[str, Any]) -> FeatureKind:
    """Tell the generation of the text features by the four keys that came with the newer ones."""
    present = {key: section[key] for key in TOKEN_RMS_KEYS if key in section}
    norm = str(section.get("text_encoder_norm_type", "per_token_rms")).lower()
    if not present:
        return "layer_range"
    if present == TOKEN_RMS_KEYS and norm == "per_token_rms":
        return "token_rms"
    missing = [key for key in TOKEN_RMS_KEYS if key not in present]
    found = ", ".join(f"{key}={value}" for key, value in present.items())
    raise ConfigError(
        f"transformer: unknown kind of text features: {found}, text_encoder_norm_type={norm}"
        + (f", without {', '.join(missing)}" if missing else "")
        + "; LTX-2.0 has none of these keys, LTX-2.3 and later have "
        + ", ".join(f"{key}={value}" for key, value in TOKEN_RMS_KEYS.items())
    )
