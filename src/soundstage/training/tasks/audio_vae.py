"""Train the audio VAE on the log-mel spectrograms of synthesised sound tracks."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soundstage.core.config import from_dict
from soundstage.core.types import LogMel
from soundstage.data.world.kind import Split
from soundstage.dsp.mel import log_mel
from soundstage.dsp.resample import resample
from soundstage.models.audio_vae.config import AudioVAEConfig
from soundstage.models.audio_vae.model import AudioVAE
from soundstage.training.recipe import DataRecipe, Recipe
from soundstage.training.samples import HELD_OUT_SEED, WorldSource
from soundstage.training.stereo_start import start_with_stereo

SOURCE_RATE = 24_000  # Hz, of the world's sound
EXTRA_SECONDS = 0.2  # synthesised past the clip's end, so that no spectrogram frame sees an artificial stop


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Loss weights."""

    kl_weight: float = 1e-4
    difference_weight: float = 0.5  # of changes from frame to frame: keeps onsets sharp
    side_weight: float = 1.0  # of left minus right: without it the stereo picture is learnt last
    stereo_start_clips: int = 0  # from which a path for the difference between the ears is set; 0 = none
    num_validation_clips: int = 32
    num_statistics_clips: int = 256  # from which the latents' mean and deviation are measured


class MelSource:
    """Draw log-mel spectrograms exactly as long as a clip's audio tokens stand for."""

    def __init__(self, recipe: DataRecipe, config: AudioVAEConfig, device: torch.device) -> None:
        self.world = WorldSource(recipe, device)
        self.config = config
        geometry = config.geometry()
        self.num_frames = geometry.num_mel_frames(geometry.num_tokens(recipe.num_frames, recipe.frame_rate))

    def __call__(self, seed: int, count: int, split: Split = "train") -> LogMel:
        """Synthesise `count` spectrograms."""
        return self.of(self.world.waveform(seed, count, SOURCE_RATE, EXTRA_SECONDS, split))

    def of(self, waveform: Tensor) -> LogMel:
        """Compute the spectrograms of sound at `SOURCE_RATE`."""
        mel = log_mel(resample(waveform, SOURCE_RATE, self.config.mel.sample_rate), self.config.mel)
        return mel[:, :, : self.num_frames]


class AudioVAETask:
    """Reconstruct spectrograms."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.settings = from_dict(Settings, recipe.settings, where="settings")
        config = AudioVAEConfig.from_header(recipe.model["audio_vae"])
        self.vae = AudioVAE(config).to(device)
        for name, value in (("mean-of-means", 0.0), ("std-of-means", 1.0)):
            self.vae.per_channel_statistics.get_buffer(name).fill_(value)
        self.modules: dict[str, nn.Module] = {"loss": self.vae}
        self.mels = MelSource(recipe.data, config, device)
        if self.settings.stereo_start_clips:
            start_with_stereo(self.vae, self.mels(recipe.seed, self.settings.stereo_start_clips))

    def batch(self, seed: int) -> LogMel:
        """Synthesise one batch and cut an excerpt from each, so that many sounds are affordable."""
        mels, length = self.mels(seed, self.recipe.batch_size), self.recipe.data.window_frames
        if length is None or length >= mels.shape[2]:
            return mels
        rng = random.Random(seed)
        starts = [rng.randrange(mels.shape[2] - length + 1) for _ in mels]
        return torch.stack([mel[:, s : s + length] for mel, s in zip(mels, starts, strict=True)])

    def loss(self, phase: str, batch: LogMel, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Weigh absolute error, its change in time, its difference between the ears, and divergence."""
        del phase
        mean, log_variance = self.vae.encode_posterior(batch)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        latents = mean + noise * (0.5 * log_variance).exp()
        decoded = self.vae.decode(self.vae.per_channel_statistics.normalise(latents))
        error = decoded - batch
        absolute, difference = error.abs().mean(), error.diff(dim=2).abs().mean()
        side = (error[:, 0] - error[:, 1]).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 3)).mean()
        settings = self.settings
        loss = absolute + settings.difference_weight * difference + settings.side_weight * side
        figures = {"l1": absolute.item(), "difference": difference.item(), "side": side.item()}
        return loss + settings.kl_weight * kl, figures | {"kl": kl.item()}

    def validate(self) -> dict[str, float]:
        """Measure the mean absolute error of held-out log-mels, all and within 50 ms after onsets."""
        self.measure_statistics()
        mel = self.mels(HELD_OUT_SEED, self.settings.num_validation_clips, "held_out")
        decoded = self.vae.decode(self.vae.encode(mel))
        error = (decoded - mel).abs()
        rise = mel.mean(dim=(1, 3)).diff(dim=1, prepend=mel.mean(dim=(1, 3))[:, :1])
        onset = nn.functional.max_pool1d((rise > 0.5).float()[:, None], 5, stride=1, padding=2)[:, 0] > 0
        side = (decoded[:, 0] - decoded[:, 1]) - (mel[:, 0] - mel[:, 1])
        return {
            "mel_l1": error.mean().item(),
            "side_l1": side.abs().mean().item(),
            "mel_l1_onset": error.mean(dim=(1, 3))[onset].mean().item()
            if bool(onset.any())
            else float("nan"),
        }

    @torch.no_grad()
    def measure_statistics(self) -> None:
        """Set the latents' statistics from synthesised sound."""
        mels = self.mels(HELD_OUT_SEED - 1, self.settings.num_statistics_clips)
        self.vae.per_channel_statistics.measure(*self.vae.encode_posterior(mels))

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the `audio_vae` section and tensors."""
        self.measure_statistics()
        tensors = {f"audio_vae.{k}": v for k, v in self.vae.state_dict().items()}
        return {"audio_vae": self.vae.config.to_header()}, tensors

    def memory(self) -> dict[str, Tensor]:
        """Return nothing: samples are functions of the step."""
        return {}

    def restore(self, memory: dict[str, Tensor]) -> None:
        """Take nothing back."""
