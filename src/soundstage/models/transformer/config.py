"""Everything that shapes the transformer, read from a checkpoint's header."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from soundstage.core.errors import ConfigError
from soundstage.nn.rope import Precision, RopeKind

Stream = Literal["video", "audio"]
STREAMS: tuple[Stream, ...] = ("video", "audio")
Prediction = Literal["velocity", "clean"]

# What every released checkpoint says, and the only thing this implementation does.
_FIXED: Mapping[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_type": "default",
    "av_cross_ada_norm": True,
    "causal_temporal_positioning": True,
    "double_self_attention": False,
    "norm_elementwise_affine": False,
    "only_cross_attention": False,
    "positional_embedding_type": "rope",
    "qk_norm": "rms_norm",
    "share_ff": False,
    "standardization_norm": "rms_norm",
    "use_audio_video_cross_attention": True,
    "use_middle_indices_grid": True,
}


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """The shape of one stream."""

    in_channels: int  # features of one token
    out_channels: int
    heads: int
    head_dim: int
    context_dim: int  # width of the text features that text attention reads
    max_pos: tuple[float, ...]  # per position axis, the coordinate that RoPE maps to 1; seconds, pixels
    ff_bias: bool

    @property
    def dim(self) -> int:
        """Width of the stream."""
        return self.heads * self.head_dim

    @property
    def ff_dim(self) -> int:
        """Inner width of the feed-forward network."""
        return 4 * self.dim


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of the dual-stream transformer.

    Cross-modal attention has the audio stream's heads in both directions.

    Raises:
        ConfigError: The parts do not fit together.
    """

    video: StreamConfig
    audio: StreamConfig
    num_layers: int
    caption_channels: (
        int | None
    )  # text width before the caption projection; None = projected by the connectors
    attention_bias: bool
    gated_attention: bool  # gates per head (2.3 and later)
    text_modulation: bool  # text attention is modulated: 9 rows per block instead of 6 (2.3 and later)
    prompt_adaln: bool  # the text itself is modulated by the noise level, not only by a table
    keyframe_embedding: bool  # marks the first latent frame and generated keyframes (2.5)
    norm_eps: float
    rope_theta: float
    rope_kind: RopeKind
    rope_precision: Precision
    timestep_scale: float  # from noise level to what the network embeds
    gate_timestep_scale: float  # the same for the gates between the streams
    patch_size: int = 1  # latent cells per video token, each spatial axis; ours, official files have 1
    prediction: Prediction = (
        "velocity"  # what the output projection gives; ours, official files have velocity
    )
    absolute_positions: bool = False  # tokens are told where they are, beside the rotations; ours as well
    detail_width: int = 0  # inner width of what adds detail to each token, 0 = none; ours as well

    def __post_init__(self) -> None:
        projected = self.caption_channels is not None or self.text_modulation
        for name, stream in (("video", self.video), ("audio", self.audio)):
            if projected and stream.context_dim != stream.dim:
                raise ConfigError(
                    f"{name}: text width {stream.context_dim} must equal the stream's width {stream.dim}, "
                    "because text is projected or modulated at that width"
                )
            if stream.dim % 2 or stream.head_dim % 2:
                raise ConfigError(f"{name}: head_dim={stream.head_dim} is odd; rotation needs pairs")
        if len(self.video.max_pos) != 3 or len(self.audio.max_pos) != 1:
            raise ConfigError("max_pos needs 3 entries for video (time, height, width) and 1 for audio")
        if self.detail_width < 0:
            raise ConfigError(f"detail_width={self.detail_width} is below 0")
        if self.num_layers < 1:
            raise ConfigError(f"num_layers={self.num_layers} is below 1")

    @property
    def cross_max_pos(self) -> tuple[float]:
        """Seconds that cross-modal RoPE maps to 1."""
        return (max(self.video.max_pos[0], self.audio.max_pos[0]),)

    @property
    def modulation_rows(self) -> int:
        """Rows of a stream's table: shift, scale, gate of self-attention, feed-forward and perhaps text."""
        return 9 if self.text_modulation else 6

    def kept_per_text_token(self, streams: Iterable[Stream]) -> int:
        """Count the numbers that a run keeps of a text token: keys and values of every block, its projection.

        None where the noise level changes what is read (2.3).
        """
        if self.prompt_adaln:
            return 0
        width = sum(self.video.dim if stream == "video" else self.audio.dim for stream in streams)
        return width * (2 * self.num_layers + (1 if self.caption_channels else 0))

    @classmethod
    def from_header(cls, section: Mapping[str, Any]) -> "TransformerConfig":
        """Read the header's `transformer` section; where it is silent, the released LTX-2.0 values hold.

        Raises:
            ConfigError: A value asks for something that no released checkpoint has.
        """
        for key, allowed in _FIXED.items():
            if section.get(key, allowed) != allowed:
                raise ConfigError(f"transformer.{key}={section[key]!r} is not supported; only {allowed!r} is")
        get = section.get
        ff_bias = bool(get("ff_bias", True))
        return cls(
            video=StreamConfig(
                in_channels=get("in_channels", 128),
                out_channels=get("out_channels", 128),
                heads=get("num_attention_heads", 32),
                head_dim=get("attention_head_dim", 128),
                context_dim=get("cross_attention_dim", 4096),
                max_pos=tuple(map(float, get("positional_embedding_max_pos", (20, 2048, 2048)))),
                ff_bias=ff_bias,
            ),
            audio=StreamConfig(
                in_channels=get("audio_in_channels", 128),
                out_channels=get("audio_out_channels", 128),
                heads=get("audio_num_attention_heads", 32),
                head_dim=get("audio_attention_head_dim", 64),
                context_dim=get("audio_cross_attention_dim", 2048),
                max_pos=tuple(map(float, get("audio_positional_embedding_max_pos", (20,)))),
                ff_bias=bool(get("audio_ff_bias", True)),
            ),
            num_layers=get("num_layers", 48),
            caption_channels=None
            if get("caption_proj_before_connector", False)
            else get("caption_channels", 3840),
            attention_bias=get("attention_bias", True),
            gated_attention=get("apply_gated_attention", False),
            text_modulation=get("cross_attention_adaln", False),
            prompt_adaln=get("cross_attention_adaln", False) and get("use_prompt_adaln_single", True),
            keyframe_embedding=get("use_keyframes_abs_pos_embedding", False),
            norm_eps=float(get("norm_eps", 1e-6)),
            rope_theta=float(get("positional_embedding_theta", 10_000.0)),
            rope_kind=cast(RopeKind, _one_of(RopeKind, "rope_type", get("rope_type", "split"))),
            rope_precision=cast(
                Precision,
                _one_of(Precision, "frequencies_precision", get("frequencies_precision", "float64")),
            ),
            timestep_scale=float(get("timestep_scale_multiplier", 1000)),
            gate_timestep_scale=float(get("av_ca_timestep_scale_multiplier", 1000)),
            patch_size=get("patch_size", 1),
            prediction=cast(Prediction, _one_of(Prediction, "prediction", get("prediction", "velocity"))),
            absolute_positions=get("absolute_positions", False),
            detail_width=int(get("detail_width", 0)),
        )

    def to_header(self) -> dict[str, Any]:
        """Write the section that `from_header` reads."""
        captions = (
            {"caption_proj_before_connector": True}
            if self.caption_channels is None
            else {"caption_channels": self.caption_channels}
        )
        return {
            "_class_name": "AVTransformer3DModel",
            **_FIXED,
            **captions,
            "in_channels": self.video.in_channels,
            "out_channels": self.video.out_channels,
            "num_attention_heads": self.video.heads,
            "attention_head_dim": self.video.head_dim,
            "cross_attention_dim": self.video.context_dim,
            "positional_embedding_max_pos": list(self.video.max_pos),
            "ff_bias": self.video.ff_bias,
            "audio_in_channels": self.audio.in_channels,
            "audio_out_channels": self.audio.out_channels,
            "audio_num_attention_heads": self.audio.heads,
            "audio_attention_head_dim": self.audio.head_dim,
            "audio_cross_attention_dim": self.audio.context_dim,
            "audio_positional_embedding_max_pos": list(self.audio.max_pos),
            "audio_ff_bias": self.audio.ff_bias,
            "num_layers": self.num_layers,
            "attention_bias": self.attention_bias,
            "apply_gated_attention": self.gated_attention,
            "cross_attention_adaln": self.text_modulation,
            "use_prompt_adaln_single": self.prompt_adaln or not self.text_modulation,
            "use_keyframes_abs_pos_embedding": self.keyframe_embedding,
            "norm_eps": self.norm_eps,
            "positional_embedding_theta": self.rope_theta,
            "rope_type": self.rope_kind,
            "frequencies_precision": self.rope_precision,
            "timestep_scale_multiplier": self.timestep_scale,
            "av_ca_timestep_scale_multiplier": self.gate_timestep_scale,
            "patch_size": self.patch_size,
            "prediction": self.prediction,
            "absolute_positions": self.absolute_positions,
            "detail_width": self.detail_width,
        }


def _one_of(names: Any, key: str, value: object) -> object:
    """Refuse a value that is not among the names of a `Literal`."""
    if value not in get_args(names):
        raise ConfigError(f"transformer.{key}={value!r} is not one of {', '.join(get_args(names))}")
    return value
