"""What shapes a latent upsampler, read from the header of its own file."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from soundstage.core.config import from_dict, to_dict
from soundstage.core.errors import ConfigError

NORM_GROUPS = 32

# What the resampler can do: each scale as a ratio of whole numbers.
SCALES = {2.0: Fraction(2), 1.5: Fraction(3, 2), 4.0: Fraction(4), 0.75: Fraction(3, 4)}


@dataclass(frozen=True, kw_only=True)
class LatentUpsamplerConfig:
    """The names and the values of absent keys are those of the header."""

    in_channels: int = 128  # of the video VAE's latents
    mid_channels: int = 512
    num_blocks_per_stage: int = 4  # before the change of size, and again after it
    dims: int = 3
    spatial_upsample: bool = True
    temporal_upsample: bool = False
    spatial_scale: float = 2.0  # only for the rational resampler
    rational_resampler: bool = False

    def __post_init__(self) -> None:
        if self.dims != 3:
            raise ConfigError(f"upsampler: dims={self.dims} is not supported; released files have 3")
        if not (self.spatial_upsample or self.temporal_upsample):
            raise ConfigError("upsampler: spatial_upsample and temporal_upsample are both off")
        if self.mid_channels < NORM_GROUPS or self.mid_channels % NORM_GROUPS:
            raise ConfigError(
                f"upsampler: mid_channels={self.mid_channels} is not a multiple of {NORM_GROUPS}"
            )
        if self.is_rational and self.spatial_scale not in SCALES:
            allowed = ", ".join(map(str, SCALES))
            raise ConfigError(f"upsampler: spatial_scale={self.spatial_scale} is not one of {allowed}")

    @property
    def is_rational(self) -> bool:
        """Whether the resampler that can do fractions is used; never when time is upsampled."""
        return self.rational_resampler and not self.temporal_upsample

    @property
    def scale(self) -> Fraction:
        """Factor of width and height."""
        if self.is_rational:
            return SCALES[self.spatial_scale]
        return Fraction(2 if self.spatial_upsample else 1)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Say how many latent frames, rows and columns come out."""
        frames = 2 * frames - 1 if self.temporal_upsample else frames
        up, down = self.scale.numerator, self.scale.denominator
        return frames, -(-height * up // down), -(-width * up // down)

    @classmethod
    def from_header(cls, section: Mapping[str, Any]) -> "LatentUpsamplerConfig":
        """Read the header's `config`, which is flat in upsampler files."""
        return from_dict(cls, section, where="upsampler", ignore_unknown=True)

    def to_header(self) -> dict[str, Any]:
        """Write the header's `config`."""
        return {"_class_name": "LatentUpsampler", **to_dict(self)}
