"""Every size rule: pixels and latent cells, seconds and frames and tokens and samples.

Plain Python, no torch, so that requests can be checked before anything is loaded.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from soundstage.core.errors import RequestError


def nearest_allowed(value: int, step: int, offset: int = 0) -> tuple[int, int]:
    """Return the allowed values `k * step + offset` below and above `value` (at least one step or offset)."""
    least = offset if offset > 0 else step
    below = (value - offset) // step * step + offset
    return max(below, least), max(below + step, least)


@dataclass(frozen=True, kw_only=True)
class VideoGeometry:
    """How pixels become latent cells and latent cells become tokens.

    The first latent frame holds one pixel frame, each further one `temporal_factor` frames (causal VAE).
    """

    temporal_factor: int = 8  # pixel frames per latent frame
    spatial_factor: int = 32  # pixels per latent cell, each axis
    channels: int = 128  # of one latent cell
    patch_size: int = 1  # latent cells per token, each spatial axis

    @property
    def token_size(self) -> int:
        """Pixels per token along each spatial axis."""
        return self.spatial_factor * self.patch_size

    @property
    def token_channels(self) -> int:
        """Features of one token."""
        return self.channels * self.patch_size**2

    def num_latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip.

        Raises:
            RequestError: `num_frames` is not 1 more than a multiple of the temporal factor.
        """
        self.check_num_frames(num_frames)
        return (num_frames - 1) // self.temporal_factor + 1

    def num_pixel_frames(self, num_latent_frames: int) -> int:
        """Pixel frames that a latent clip decodes to."""
        return (num_latent_frames - 1) * self.temporal_factor + 1

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, height and width of a clip of that pixel size.

        Raises:
            RequestError: A size is not allowed.
        """
        self.check_size(height, width)
        frames = self.num_latent_frames(num_frames)
        return frames, height // self.spatial_factor, width // self.spatial_factor

    def num_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Tokens that the transformer sees for a clip of that pixel size."""
        frames, rows, columns = self.latent_shape(num_frames, height, width)
        return frames * (rows // self.patch_size) * (columns // self.patch_size)

    def check_num_frames(self, num_frames: int, name: str = "num_frames") -> None:
        """Raise a `RequestError` that names the nearest allowed frame counts."""
        step = self.temporal_factor
        if num_frames < 1 or (num_frames - 1) % step:
            low, high = nearest_allowed(num_frames, step, 1)
            near = f"the nearest are {low} and {high}" if low != high else f"the nearest is {low}"
            raise RequestError(f"{name}={num_frames} is not {step} k + 1; {near}")

    def check_size(self, height: int, width: int, multiple: int | None = None) -> None:
        """Raise a `RequestError` that names the nearest allowed extents."""
        step = multiple or self.token_size
        for name, value in (("height", height), ("width", width)):
            if value < step or value % step:
                low, high = nearest_allowed(value, step)
                near = f"the nearest are {low} and {high}" if low != high else f"the nearest is {low}"
                raise RequestError(f"{name}={value} is not a multiple of {step}; {near}")

    def crop_num_frames(self, num_frames: int) -> int:
        """Round a frame count down to the last allowed one; encoding a given clip drops the rest."""
        return max((num_frames - 1) // self.temporal_factor, 0) * self.temporal_factor + 1

    def fit_num_frames(self, num_frames: int) -> int:
        """Round a frame count up to the next allowed one."""
        return math.ceil((max(num_frames, 1) - 1) / self.temporal_factor) * self.temporal_factor + 1

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        """Round a size up to the next allowed one."""
        step = self.token_size
        return math.ceil(height / step) * step, math.ceil(width / step) * step


@dataclass(frozen=True, kw_only=True)
class AudioGeometry:
    """How seconds become waveform samples, mel frames and audio tokens."""

    sample_rate: int = 16_000  # Hz, of the waveform that becomes mel
    hop_length: int = 160  # samples per mel frame
    downsample_factor: int = 4  # mel frames per token (the first token holds one)
    channels: int = 8  # of one latent cell
    latent_bins: int = 16  # latent mel bins
    output_sample_rate: int = 24_000  # Hz, of what the vocoder makes

    @property
    def latents_per_second(self) -> float:
        """Tokens per second: 25 for every released checkpoint."""
        return self.sample_rate / self.hop_length / self.downsample_factor

    @property
    def token_channels(self) -> int:
        """Features of one token."""
        return self.channels * self.latent_bins

    def num_tokens(self, num_frames: int, frame_rate: Fraction | float | int) -> int:
        """Audio tokens of a clip: `round(seconds * 25)`, half to even, on the float product (spec 7.4)."""
        return round(float(num_frames) / float(frame_rate) * self.latents_per_second)

    def num_mel_frames(self, num_tokens: int) -> int:
        """Mel frames that the decoder makes of that many tokens."""
        return max(self.downsample_factor * num_tokens - (self.downsample_factor - 1), 1)

    def num_samples(self, num_tokens: int) -> int:
        """Output samples that the vocoder makes of that many tokens."""
        samples_per_mel = self.output_sample_rate * self.hop_length // self.sample_rate
        return self.num_mel_frames(num_tokens) * samples_per_mel


def num_frames_for(duration: float | int, frame_rate: Fraction | float | int) -> int:
    """Frames that cover `duration` seconds, rounded to nearest.

    Raises:
        RequestError: The duration or rate is not positive.
    """
    if not duration > 0 or not math.isfinite(duration):
        raise RequestError(f"duration={duration} is not a positive number of seconds")
    if not frame_rate > 0:
        raise RequestError(f"frame_rate={frame_rate} is not positive")
    return max(round(Fraction(duration) * Fraction(frame_rate)), 1)


def num_audio_samples(num_frames: int, frame_rate: Fraction | float | int, sample_rate: int) -> int:
    """Samples of a sound track exactly as long as the picture."""
    return round(Fraction(num_frames) / Fraction(frame_rate) * sample_rate)


def parse_frame_rate(value: str | int | float | Fraction) -> Fraction:
    """Read a frame rate as an exact fraction: 24, 23.976, "24000/1001".

    The decimals of broadcast rates mean thousandths of 1001: 23.976 is 24000/1001.

    Raises:
        RequestError: It is not a positive rate up to 240.
    """
    try:
        rate = Fraction(value) if not isinstance(value, float) else Fraction(str(value))
    except (ValueError, ZeroDivisionError) as error:
        raise RequestError(
            f"frame_rate={value!r} is not a number or a fraction such as 24000/1001"
        ) from error
    for base in (24, 30, 48, 60, 120):
        broadcast = Fraction(base * 1000, 1001)
        if rate.denominator != 1 and abs(rate - broadcast) < Fraction(1, 200):
            return broadcast
    if not 0 < rate <= 240:
        raise RequestError(f"frame_rate={value!r} is outside (0, 240]")
    return rate
