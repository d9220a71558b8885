"""What shapes the audio VAE, read from the `audio_vae` section of a checkpoint's header."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from soundstage.core.errors import ConfigError
from soundstage.core.geometry import AudioGeometry
from soundstage.dsp.mel import MelConfig


@dataclass(frozen=True, kw_only=True)
class AudioVAEConfig:
    """The network's widths and the front-end it was trained on."""

    ch: int  # channels of the finest level
    ch_mult: tuple[int, ...]  # channels of each level, as multiples of `ch`; between levels both axes halve
    num_res_blocks: int  # per level of the encoder; the decoder has one more
    z_channels: int  # of a latent cell
    in_channels: int = 2  # audio channels in
    out_channels: int = 2  # audio channels out
    mel: MelConfig = field(default_factory=MelConfig)

    def __post_init__(self) -> None:
        for name in ("ch", "num_res_blocks", "z_channels", "in_channels", "out_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"audio_vae: {name}={getattr(self, name)} is not positive")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ConfigError(f"audio_vae: ch_mult={list(self.ch_mult)} is not a list of positive multiples")
        if self.mel.num_mels % self.downsample_factor:
            raise ConfigError(
                f"audio_vae: mel_bins={self.mel.num_mels} is not a multiple of {self.downsample_factor}, "
                f"by which {len(self.ch_mult)} levels divide it"
            )

    @property
    def downsample_factor(self) -> int:
        """Mel frames per latent frame, and mel bins per latent bin."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def latent_bins(self) -> int:
        """Bins of a latent frame."""
        return self.mel.num_mels // self.downsample_factor

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.ch * multiple for multiple in self.ch_mult)

    def geometry(self, output_sample_rate: int = AudioGeometry.output_sample_rate) -> AudioGeometry:
        """Say how seconds become tokens, with the vocoder's rate in Hz for what comes out."""
        return AudioGeometry(
            sample_rate=self.mel.sample_rate,
            hop_length=self.mel.hop_length,
            downsample_factor=self.downsample_factor,
            channels=self.z_channels,
            latent_bins=self.latent_bins,
            output_sample_rate=output_sample_rate,
        )

    @classmethod
    def from_header(cls, section: Mapping[str, Any]) -> "AudioVAEConfig":
        """Read the header's `audio_vae` section; values it leaves out are those of the released models.

        Raises:
            ConfigError: It describes a network of another kind.
        """
        params = section.get("model", {}).get("params", {})
        network = params.get("ddconfig", {})
        preprocessing = section.get("preprocessing", {})
        audio, stft, mel = (preprocessing.get(name, {}) for name in ("audio", "stft", "mel"))
        _check_kind(network, stft)
        sample_rate = audio.get("sampling_rate", params.get("sampling_rate", 16_000))
        n_fft = stft.get("filter_length", 1024)
        mel_bins = network.get("mel_bins", mel.get("n_mel_channels", 64))
        if mel.get("n_mel_channels", mel_bins) != mel_bins:
            raise ConfigError(
                f"audio_vae: mel_bins={mel_bins} of the network differs from "
                f"n_mel_channels={mel['n_mel_channels']} of the preprocessing"
            )
        return cls(
            ch=network.get("ch", 128),
            ch_mult=tuple(network.get("ch_mult", (1, 2, 4))),
            num_res_blocks=network.get("num_res_blocks", 2),
            z_channels=network.get("z_channels", 8),
            in_channels=network.get("in_channels", 2),
            out_channels=network.get("out_ch", 2),
            mel=MelConfig(
                sample_rate=sample_rate,
                n_fft=n_fft,
                win_length=stft.get("win_length", n_fft),
                hop_length=stft.get("hop_length", 160),
                num_mels=mel_bins,
                f_min=float(mel.get("mel_fmin", 0)),
                f_max=float(mel.get("mel_fmax", sample_rate / 2)),
            ),
        )

    def to_header(self) -> dict[str, Any]:
        """Write the section so that official loaders, and `from_header`, read the same network."""
        network = {
            "double_z": True,
            "mel_bins": self.mel.num_mels,
            "z_channels": self.z_channels,
            "resolution": 256,
            "downsample_time": False,
            "in_channels": self.in_channels,
            "out_ch": self.out_channels,
            "ch": self.ch,
            "ch_mult": list(self.ch_mult),
            "num_res_blocks": self.num_res_blocks,
            "dropout": 0.0,
            **{name: list(value) if value == () else value for name, value in _FIXED.items()},
        }
        mel = self.mel
        return {
            "model": {"params": {"ddconfig": network, "sampling_rate": mel.sample_rate}},
            "preprocessing": {
                "audio": {
                    "sampling_rate": mel.sample_rate,
                    "max_wav_value": 32768.0,
                    "stereo": self.in_channels == 2,
                    "causal_padding": self.downsample_factor - 1,
                },
                "stft": {
                    "filter_length": mel.n_fft,
                    "hop_length": mel.hop_length,
                    "win_length": mel.win_length,
                    "causal": True,
                },
                "mel": {"n_mel_channels": mel.num_mels, "mel_fmin": mel.f_min, "mel_fmax": mel.f_max},
            },
        }


# The only kind of network that was released; anything else would compute something different.
_FIXED: dict[str, Any] = {
    "attn_resolutions": (),
    "mid_block_add_attention": False,
    "norm_type": "pixel",
    "causality_axis": "height",
}


def _check_kind(network: Mapping[str, Any], stft: Mapping[str, Any]) -> None:
    for name, allowed in {**_FIXED, "double_z": True}.items():
        value = network.get(name, allowed)
        value = tuple(value) if isinstance(value, list) else value
        if value != allowed:
            raise ConfigError(
                f"audio_vae: {name}={value!r} is not supported; released files have {allowed!r}"
            )
    if not stft.get("causal", True):
        raise ConfigError("audio_vae: stft.causal=false is not supported; released files have true")
