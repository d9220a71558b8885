"""Picture and sound to latents, with the encoders of the loaded model."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from soundstage.core.errors import CheckpointError
from soundstage.core.types import AudioLatents, Tokens
from soundstage.dsp.mel import log_mel
from soundstage.dsp.resample import resample
from soundstage.media.video import ExactFrames, Frames, to_pixels
from soundstage.models.transformer.patchify import patchify_audio
from soundstage.models.video_vae.tiling import encode_tiled
from soundstage.pipelines.loading import Components
from soundstage.runtime.layout import lay_out
from soundstage.runtime.precision import full_float32
from soundstage.runtime.residency import bring

StereoWaveform = Float[Tensor, "2 samples"]


class Encoders:
    """Turns media into what the transformer sees; results are float32 on the CPU."""

    def __init__(self, components: Components) -> None:
        self.components = components

    @torch.no_grad()
    def video(self, frames: Frames | ExactFrames) -> Float[Tensor, "b c latents rows columns"]:
        """Encode frames whose size and count fit the grid, in tiles if they are large.

        Raises:
            CheckpointError: The model's files hold no video encoder.
            RequestError: The frames do not fit the grid.
        """
        vae = self.components.video_vae
        if vae is None or vae.encoder is None:
            raise self._missing("video")
        bring(vae)
        lay_out(vae, self.components.device)
        pixels = to_pixels(frames)[None].to(self.components.device, next(vae.parameters()).dtype)
        return encode_tiled(vae, pixels).float().cpu()

    @torch.no_grad()
    @full_float32()
    def audio(self, waveform: StereoWaveform, sample_rate: int, num_tokens: int) -> AudioLatents:
        """Encode the beginning of a sound to that many tokens; what is missing at its end is silence.

        Raises:
            CheckpointError: The model's files hold no audio encoder.
        """
        vae = self.components.audio_vae
        if vae is None or vae.encoder is None:
            raise self._missing("audio")
        bring(vae)
        config, geometry = vae.config.mel, self.components.audio_geometry
        heard = resample(waveform[None].float(), sample_rate, config.sample_rate)
        num_mel_frames = geometry.num_mel_frames(num_tokens)
        least = max(num_mel_frames * config.hop_length, config.n_fft)
        heard = F.pad(heard, (0, max(least - heard.shape[-1], 0))).to(self.components.device)
        return vae.encode(log_mel(heard, config)[:, :, :num_mel_frames]).float().cpu()

    def audio_tokens(self, waveform: StereoWaveform, sample_rate: int, num_tokens: int) -> Tokens:
        """Encode as `audio` does and lay the latents out as tokens."""
        return patchify_audio(self.audio(waveform, sample_rate, num_tokens))

    def _missing(self, name: str) -> CheckpointError:
        label = self.components.checkpoint.label
        return CheckpointError(
            f"{label} has no {name} encoder, which what was given needs; a file with the whole {name} VAE has"
        )
