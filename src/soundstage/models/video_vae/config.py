"""Configuration of the video VAE: the block lists and paddings that its checkpoint header states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from soundstage.core.config import nearest
from soundstage.core.errors import ConfigError
from soundstage.core.geometry import VideoGeometry
from soundstage.nn.causal_conv import SpatialPadding

BlockKind = Literal[
    "res_x",
    "compress_space_res",
    "compress_time_res",
    "compress_all_res",
    "compress_space",
    "compress_time",
    "compress_all",
]
LogVariance = Literal["uniform", "per_channel", "constant"]

STRIDES: dict[str, tuple[int, int, int]] = {"space": (1, 2, 2), "time": (2, 1, 1), "all": (2, 2, 2)}
ENCODER_BLOCKS = ("res_x", "compress_space_res", "compress_time_res", "compress_all_res")
DECODER_BLOCKS = ("res_x", "compress_space", "compress_time", "compress_all")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One entry of a block list."""

    kind: BlockKind
    num_layers: int = 1  # of a `res_x` group
    multiplier: int = 1  # encoder: widens by it; decoder: narrows by it
    residual: bool = False  # decoder upsampling adds its shuffled input

    @property
    def stride(self) -> tuple[int, int, int]:
        """How much the block changes (time, height, width); (1, 1, 1) for a residual group."""
        return (1, 1, 1) if self.kind == "res_x" else STRIDES[self.kind.split("_")[1]]


@dataclass(frozen=True, kw_only=True)
class VideoVAEConfig:
    """Everything that shapes a tensor of the video VAE."""

    latent_channels: int
    encoder_blocks: tuple[Block, ...]
    decoder_blocks: tuple[Block, ...]  # as the header lists them: from the pixels inwards
    encoder_base_channels: int
    decoder_base_channels: int
    patch_size: int = 4
    log_variance: LogVariance = "uniform"
    encoder_padding: SpatialPadding = "zeros"
    decoder_padding: SpatialPadding = "reflect"
    causal_decoder: bool = False

    def __post_init__(self) -> None:
        for name, blocks in (
            ("encoder_blocks", self.encoder_blocks),
            ("decoder_blocks", self.decoder_blocks),
        ):
            if not blocks:
                raise ConfigError(f"vae.{name} is empty")
        if _factors(self.encoder_blocks) != _factors(self.decoder_blocks):
            raise ConfigError(
                f"vae: the encoder compresses (time, space) by {_factors(self.encoder_blocks)}, "
                f"the decoder expands by {_factors(self.decoder_blocks)}; they must agree"
            )

    @property
    def geometry(self) -> VideoGeometry:
        """Compression factors, derived from the block list."""
        time, space = _factors(self.encoder_blocks)
        return VideoGeometry(
            temporal_factor=time, spatial_factor=space * self.patch_size, channels=self.latent_channels
        )

    @classmethod
    def from_header(cls, section: Mapping[str, Any]) -> "VideoVAEConfig":
        """Read the `vae` section of a checkpoint header.

        Raises:
            ConfigError: The section describes something other than the convolutional video VAE.
        """
        class_name = section.get("_class_name", "CausalVideoAutoencoder")
        if class_name != "CausalVideoAutoencoder":
            raise ConfigError(f"vae._class_name={class_name!r} is not supported; 'CausalVideoAutoencoder' is")
        if section.get("timestep_conditioning", False):
            raise ConfigError(
                "vae.timestep_conditioning=true: no LTX-2 checkpoint has it, and it is not supported"
            )
        if section.get("norm_layer", "pixel_norm") != "pixel_norm":
            raise ConfigError(f"vae.norm_layer={section['norm_layer']!r} is not supported; 'pixel_norm' is")
        both = section.get("spatial_padding_mode")
        return cls(
            latent_channels=section.get("latent_channels", 128),
            encoder_blocks=_parse_blocks(section.get("encoder_blocks"), ENCODER_BLOCKS, "encoder_blocks"),
            decoder_blocks=_parse_blocks(section.get("decoder_blocks"), DECODER_BLOCKS, "decoder_blocks"),
            encoder_base_channels=section.get("encoder_base_channels", 128),
            decoder_base_channels=section.get("decoder_base_channels", 128),
            patch_size=section.get("patch_size", 4),
            log_variance=_log_variance(section.get("latent_log_var", "uniform")),
            encoder_padding=both or section.get("encoder_spatial_padding_mode", "zeros"),
            decoder_padding=both or section.get("decoder_spatial_padding_mode", "reflect"),
            causal_decoder=section.get("causal_decoder", False),
        )

    def to_header(self) -> dict[str, Any]:
        """Write the `vae` section that `from_header` reads back."""
        return {
            "_class_name": "CausalVideoAutoencoder",
            "dims": 3,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": self.latent_channels,
            "encoder_blocks": [_encoder_entry(block) for block in self.encoder_blocks],
            "decoder_blocks": [_decoder_entry(block) for block in self.decoder_blocks],
            "encoder_base_channels": self.encoder_base_channels,
            "decoder_base_channels": self.decoder_base_channels,
            "patch_size": self.patch_size,
            "norm_layer": "pixel_norm",
            "latent_log_var": self.log_variance,
            "encoder_spatial_padding_mode": self.encoder_padding,
            "decoder_spatial_padding_mode": self.decoder_padding,
            "causal_decoder": self.causal_decoder,
            "timestep_conditioning": False,
        }


def _factors(blocks: Sequence[Block]) -> tuple[int, int]:
    time = space = 1
    for block in blocks:
        time *= block.stride[0]
        space *= block.stride[1]
    return time, space


def _log_variance(value: str) -> LogVariance:
    if value not in ("uniform", "per_channel", "constant"):
        allowed = ("uniform", "per_channel", "constant")
        raise ConfigError(f"vae.latent_log_var={value!r} is not one of {allowed}{nearest(value, allowed)}")
    return value  # type: ignore[return-value]  # narrowed by the check above


def _parse_blocks(entries: Sequence[Any] | None, allowed: Sequence[str], where: str) -> tuple[Block, ...]:
    if entries is None:
        raise ConfigError(f"vae.{where} is missing from the header")
    blocks = []
    for index, (kind, params) in enumerate(entries):
        if kind not in allowed:
            known = ", ".join(allowed)
            raise ConfigError(
                f"vae.{where}[{index}] is of kind {kind!r}; known are {known}{nearest(kind, allowed)}"
            )
        values: dict[str, Any] = {"num_layers": params} if isinstance(params, int) else dict(params)
        if values.get("inject_noise", False):
            raise ConfigError(f"vae.{where}[{index}].inject_noise=true: no LTX-2 checkpoint has it")
        default = 2 if kind.endswith("_res") else 1
        blocks.append(
            Block(
                kind=kind,
                num_layers=values.get("num_layers", 1),
                multiplier=values.get("multiplier", default),
                residual=values.get("residual", False),
            )
        )
    return tuple(blocks)


def _encoder_entry(block: Block) -> list[Any]:
    return [block.kind, _res_params(block) or {"multiplier": block.multiplier}]


def _decoder_entry(block: Block) -> list[Any]:
    return [block.kind, _res_params(block) or {"multiplier": block.multiplier, "residual": block.residual}]


def _res_params(block: Block) -> dict[str, int]:
    return {"num_layers": block.num_layers} if block.kind == "res_x" else {}
