"""Train the vocoder: log-mel spectrograms to the waveforms that they came from.

Magnitudes are compared at several resolutions, the shortest for sharp onsets and the longest for pitch, on
left, right, middle and side, so that the stereo picture counts too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.config import from_dict
from soundstage.core.types import LogMel, Waveform
from soundstage.data.world.kind import Split
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.model import build_vocoder
from soundstage.training.export import read_component
from soundstage.training.recipe import Recipe
from soundstage.training.samples import HELD_OUT_SEED
from soundstage.training.tasks.audio_vae import EXTRA_SECONDS, SOURCE_RATE, MelSource

RESOLUTIONS = (64, 128, 256, 512, 1024, 2048)  # samples per window
MAGNITUDE_FLOOR = 1e-3  # what lies 60 dB below full scale counts little


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which spectrograms are learnt from."""

    audio_vae: str = ""  # file of an audio VAE; half of the spectrograms then pass through it first
    segment_frames: int = 40  # mel frames of a training excerpt
    excerpts_per_clip: int = 2  # a clip costs more to make than to listen to
    decoded_share: float = 0.5
    num_validation_clips: int = 16


class VocoderTask:
    """Reconstruct waveforms."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.settings = from_dict(Settings, recipe.settings, where="settings")
        self.config = VocoderConfig.from_header(recipe.model["vocoder"])
        self.vocoder = build_vocoder(self.config).to(device)
        self.modules: dict[str, nn.Module] = {"loss": self.vocoder}
        self.audio_vae: AudioVAE | None = None
        audio_config = AudioVAEConfig.from_header({})
        if self.settings.audio_vae:
            sections, tensors = read_component(Path(self.settings.audio_vae))
            audio_config = AudioVAEConfig.from_header(sections["audio_vae"])
            self.audio_vae = AudioVAE(audio_config).to(device).eval().requires_grad_(False)
            own = {k.removeprefix("audio_vae."): t for k, t in tensors.items() if k.startswith("audio_vae.")}
            self.audio_vae.load_state_dict(own)
        self.mels = MelSource(recipe.data, audio_config, device)

    def batch(self, seed: int) -> tuple[LogMel, Waveform]:
        """Synthesise sound and cut excerpts, each at its own place."""
        generator = torch.Generator().manual_seed(seed)
        count, length = self.recipe.batch_size, self.settings.segment_frames
        num_clips = -(-count // self.settings.excerpts_per_clip)
        mel, waveform = self._pairs(seed, num_clips)
        chosen = (torch.rand(num_clips, generator=generator) < self.settings.decoded_share).to(mel.device)
        if self.audio_vae is not None and chosen.any():
            mel[chosen] = self._through_vae(mel[chosen])
        hop = self.config.samples_per_mel_frame
        starts = torch.randint(0, mel.shape[2] - length + 1, (count,), generator=generator).tolist()
        places = [(index % num_clips, start) for index, start in enumerate(starts)]
        mels = [mel[clip, :, start : start + length] for clip, start in places]
        cuts = [waveform[clip, :, start * hop : (start + length) * hop] for clip, start in places]
        return torch.stack(mels), torch.stack(cuts)

    def loss(
        self, phase: str, batch: tuple[LogMel, Waveform], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Compare magnitudes at every resolution."""
        del phase, generator
        mel, target = batch
        made = self.vocoder(mel).float()
        logarithmic, linear = spectral_errors(made, target)
        return logarithmic + linear, {"log": logarithmic.item(), "linear": linear.item()}

    def validate(self) -> dict[str, float]:
        """Measure spectral errors on held-out sounds, from true and from decoded spectrograms."""
        mel, target = self._pairs(HELD_OUT_SEED, self.settings.num_validation_clips, "held_out")
        figures = {"log_stft_l1": spectral_errors(self.vocoder(mel), target)[0].item()}
        if self.audio_vae is not None:
            decoded = self.vocoder(self._through_vae(mel))
            figures["log_stft_l1_decoded"] = spectral_errors(decoded, target)[0].item()
        return figures

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the `vocoder` section and tensors."""
        weights = {f"vocoder.{key}": tensor for key, tensor in self.vocoder.state_dict().items()}
        return {"vocoder": self.config.to_header()}, weights

    def memory(self) -> dict[str, Tensor]:
        """Return nothing: samples are functions of the step."""
        return {}

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take nothing back."""

    def _pairs(self, seed: int, count: int, split: Split = "train") -> tuple[LogMel, Waveform]:
        """Make spectrograms and the waveforms they stand for, equally long."""
        waveform = self.mels.world.waveform(seed, count, SOURCE_RATE, EXTRA_SECONDS, split)
        mel = self.mels.of(waveform)
        return mel, waveform[..., : mel.shape[2] * self.config.samples_per_mel_frame]

    @torch.no_grad()
    def _through_vae(self, mel: LogMel) -> LogMel:
        if self.audio_vae is None:
            raise RuntimeError("this task was given no audio VAE")
        return self.audio_vae.decode(self.audio_vae.encode(mel))


def spectral_errors(made: Waveform, target: Waveform) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Average over resolutions the absolute error of log magnitudes, and the relative error of magnitudes.

    Source: multi-resolution STFT loss, Yamamoto et al. 2020 (Parallel WaveGAN), section 2.2.
    """
    logarithmic, linear = made.new_zeros(()), made.new_zeros(())
    for size in RESOLUTIONS:
        got, wanted = _magnitudes(made, size), _magnitudes(target, size)
        logarithmic = (
            logarithmic + ((got + MAGNITUDE_FLOOR).log() - (wanted + MAGNITUDE_FLOOR).log()).abs().mean()
        )
        linear = linear + (got - wanted).norm() / wanted.norm().clamp(min=1e-3)
    return logarithmic / len(RESOLUTIONS), linear / len(RESOLUTIONS)


def _magnitudes(waveform: Waveform, size: int) -> Float[Tensor, "rows bins steps"]:
    left, right = waveform[:, 0], waveform[:, 1]
    views = torch.cat([left, right, (left + right) / 2, (left - right) / 2])
    window = torch.hann_window(size, device=waveform.device)
    spectrum = torch.stft(views, size, size // 4, window=window, return_complex=True, pad_mode="constant")
    real, imaginary = spectrum.real, spectrum.imag
    return (real.square() + imaginary.square() + 1e-12).sqrt() / window.square().sum().sqrt()
