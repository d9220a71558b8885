"""What shapes a vocoder, read from the `vocoder` section of a checkpoint's header."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from soundstage.core.config import from_dict, to_dict
from soundstage.core.errors import ConfigError

MEL_RATE = 100  # mel frames per second of every released front-end


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """One stack of upsampling stages; the names are those of the header."""

    upsample_initial_channel: int  # halved by every stage
    upsample_rates: tuple[int, ...]  # samples out per sample in, of each stage
    upsample_kernel_sizes: tuple[int, ...]
    resblock: Literal["1", "AMP1"] = "1"  # leaky ReLU, or anti-aliased periodic activations
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)  # one parallel block each
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    activation: Literal["snakebeta"] = "snakebeta"  # of AMP1 blocks
    stereo: bool = True
    one_ear: bool = (
        False  # ours: a generator of one channel, used for each; no ear hears the other's spectrogram
    )
    tone_gates: int = 0  # ours: groups of sines beside the network, each with its own gate; 0, none
    num_mels: int = 64
    use_bias_at_final: bool = True
    apply_final_activation: bool = True
    use_tanh_at_final: bool = True  # otherwise the final activation clamps

    def __post_init__(self) -> None:
        stages = list(zip(self.upsample_rates, self.upsample_kernel_sizes, strict=False))
        if not stages or len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            raise ConfigError(
                f"vocoder: {len(self.upsample_rates)} upsample_rates need as many upsample_kernel_sizes, "
                f"not {len(self.upsample_kernel_sizes)}"
            )
        for rate, kernel in stages:
            if rate < 1 or kernel < rate or (kernel - rate) % 2:
                raise ConfigError(
                    f"vocoder: upsampling by {rate} needs a kernel of {rate} plus an even number, "
                    f"not {kernel}"
                )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ConfigError("vocoder: resblock_kernel_sizes and resblock_dilation_sizes differ in length")
        if any(kernel % 2 == 0 for kernel in self.resblock_kernel_sizes):
            raise ConfigError(f"vocoder: resblock_kernel_sizes={self.resblock_kernel_sizes} must be odd")
        if self.tone_gates < 0:
            raise ConfigError(f"vocoder: tone_gates={self.tone_gates} is below 0")
        if self.tone_gates and not self.one_ear:
            raise ConfigError(f"vocoder: tone_gates={self.tone_gates} needs one_ear=true")
        divisor = 2 ** len(stages)
        if self.upsample_initial_channel < divisor or self.upsample_initial_channel % divisor:
            raise ConfigError(
                f"vocoder: upsample_initial_channel={self.upsample_initial_channel} is not a multiple of "
                f"{divisor}, which {len(stages)} stages need"
            )

    @property
    def channels(self) -> int:
        """Audio channels."""
        return 2 if self.stereo else 1

    @property
    def channels_at_once(self) -> int:
        """Audio channels that go through the stack together."""
        return 1 if self.one_ear else self.channels

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first stage, then after each."""
        return tuple(self.upsample_initial_channel >> i for i in range(len(self.upsample_rates) + 1))

    @property
    def upsample_factor(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True, kw_only=True)
class BandwidthExtensionConfig:
    """The second generator of 2.3 vocoders, and the spectrogram that it reads."""

    generator: GeneratorConfig
    input_sampling_rate: int  # Hz, of the first generator
    output_sampling_rate: int  # Hz
    hop_length: int  # samples at the input rate, of its spectrogram
    n_fft: int
    win_size: int

    def __post_init__(self) -> None:
        if self.output_sampling_rate % self.input_sampling_rate:
            raise ConfigError(
                f"vocoder: output_sampling_rate={self.output_sampling_rate} is not a multiple of "
                f"input_sampling_rate={self.input_sampling_rate}"
            )
        if self.generator.upsample_factor != self.ratio * self.hop_length:
            raise ConfigError(
                f"vocoder: the bandwidth extension makes {self.generator.upsample_factor} samples of a "
                f"spectrum; {self.hop_length} samples times {self.ratio} need {self.ratio * self.hop_length}"
            )
        if not self.hop_length <= self.win_size <= self.n_fft:
            raise ConfigError(
                f"vocoder: hop_length={self.hop_length}, win_size={self.win_size}, n_fft={self.n_fft} "
                "must not decrease in this order"
            )

    @property
    def ratio(self) -> int:
        """Samples out per sample in."""
        return self.output_sampling_rate // self.input_sampling_rate

    @classmethod
    def from_header(cls, section: Mapping[str, Any]) -> "BandwidthExtensionConfig":
        """Read the header's `vocoder.bwe` section."""
        parts = {**section, "generator": _generator(section, "vocoder.bwe")}
        return from_dict(cls, parts, where="vocoder.bwe", ignore_unknown=True)

    def to_header(self) -> dict[str, Any]:
        """Write the section."""
        own = to_dict(self)
        generator: dict[str, Any] = own.pop("generator")
        return generator | own


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """A generator, alone (2.0) or with bandwidth extension (2.3 and later)."""

    generator: GeneratorConfig
    bandwidth_extension: BandwidthExtensionConfig | None = None

    def __post_init__(self) -> None:
        if self.bandwidth_extension and self.generator.one_ear:
            raise ConfigError("vocoder: one_ear=true does not go with bandwidth extension")
        if (
            self.bandwidth_extension
            and self.generator.channels != self.bandwidth_extension.generator.channels
        ):
            raise ConfigError("vocoder: both generators must be stereo, or both mono")

    @property
    def sample_rate(self) -> int:
        """Hz of the waveform; the header of 2.0 files has no key for it."""
        if self.bandwidth_extension:
            return self.bandwidth_extension.output_sampling_rate
        return MEL_RATE * self.generator.upsample_factor

    @property
    def samples_per_mel_frame(self) -> int:
        """Samples of the waveform per mel frame."""
        ratio = self.bandwidth_extension.ratio if self.bandwidth_extension else 1
        return self.generator.upsample_factor * ratio

    @classmethod
    def from_header(cls, section: Mapping[str, Any]) -> "VocoderConfig":
        """Read the header's `vocoder` section: flat in 2.0, with a part `bwe` since 2.3.

        Raises:
            ConfigError: A width or rate is missing, or it describes a vocoder of another kind.
        """
        if "bwe" not in section:
            return cls(generator=_generator(section.get("vocoder", section), "vocoder"))
        return cls(
            generator=_generator(section.get("vocoder", {}), "vocoder.vocoder"),
            bandwidth_extension=BandwidthExtensionConfig.from_header(section["bwe"]),
        )

    def to_header(self) -> dict[str, Any]:
        """Write the section so that official loaders, and `from_header`, read the same network."""
        generator = to_dict(self.generator)
        if self.bandwidth_extension is None:
            return generator
        return {"vocoder": generator, "bwe": self.bandwidth_extension.to_header()}


def _generator(section: Mapping[str, Any], where: str) -> GeneratorConfig:
    return from_dict(GeneratorConfig, section, where=where, ignore_unknown=True)
