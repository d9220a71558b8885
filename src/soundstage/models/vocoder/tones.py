"""The sines that a log-mel spectrogram implies, in step with themselves from frame to frame.

    log-mel → sines of each frame, their pitches and levels → phase, summed over time → samples

The spectrogram of a steady tone is the same in every frame. A network of convolutions makes the same of every
frame: its output repeats 100 times a second, and whatever the tone, there are whole multiples of 100 Hz. What
it lacks is a sum over time of pitch, which is phase. Here that sum is taken; the network only has to say how
much of each sine is heard, and when.

Ours; no released checkpoint has it. See docs/decisions/0012-sines-beside-the-vocoder.md.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from soundstage.core.types import LogMel
from soundstage.dsp.mel import MelConfig
from soundstage.models.vocoder.partials import PartialFinder

PerBin = Float[Tensor, "b t mels"]


class ToneBank(nn.Module):
    """Make the sines; there is nothing to train.

    Args:
        mel: The spectrograms that will come.
        num_groups: Groups of neighbouring mel bins whose sines are summed.
        samples_per_frame: Of the waveform, for a frame of the spectrogram.

    Sources: phases of a partial, from frame to frame: McAulay and Quatieri 1986, "Speech analysis/synthesis
    based on a sinusoidal representation"; what generators of waveforms lack: Morrison et al. 2022, "Chunked
    autoregressive GAN for conditional waveform synthesis", arXiv 2110.10139.
    """

    def __init__(self, mel: MelConfig, num_groups: int, samples_per_frame: int) -> None:
        super().__init__()
        self.mel, self.num_groups, self.samples_per_frame = mel, num_groups, samples_per_frame
        self.partials = PartialFinder(mel)

    @torch.no_grad()
    def forward(self, mel: LogMel) -> Float[Tensor, "b ears groups samples"]:
        """Make the sines of a stereo spectrogram; both ears hear the same ones, each as loud as its own.

        Args:
            mel: Log-mel (b, ears, t, mels), in any float type.

        Returns:
            (b, ears, groups, t · samples_per_frame), float32; a peak that swells over several frames begins
            as early as the spectrogram does, half a window before the sound.
        """
        with torch.autocast(mel.device.type, enabled=False):
            return self._make(mel.float())

    def _make(self, mel: LogMel) -> Float[Tensor, "b ears groups samples"]:
        both = mel.logsumexp(1)
        found = self.partials(both.exp().flatten(0, 1))
        present, pitch, amplitude = (part.view(both.shape) for part in found)
        phase = self._phases(pitch, _nearest(present))
        amplitude = torch.where(present, amplitude, 0.0)[:, None] * (mel - both[:, None]).exp()
        moments = torch.arange(-self.samples_per_frame, self.samples_per_frame, device=mel.device)
        turning = 2 * math.pi / (self.mel.frame_rate * self.samples_per_frame) * moments
        fade = 1 - moments.abs() / self.samples_per_frame
        sums = []
        for bins in torch.arange(self.partials.places.stop, device=mel.device).tensor_split(self.num_groups):
            angles = phase[..., bins, None] + pitch[..., bins, None] * turning  # (b, t, bins, 2 hops)
            sines = torch.cos(angles) * fade
            frames = torch.einsum("b t m n, b e t m -> b e t n", sines, amplitude[..., bins])
            before, after = frames.chunk(2, dim=-1)  # of a frame's centre
            sums.append((after + F.pad(before[:, :, 1:], (0, 0, 0, 1))).flatten(2))
        return torch.stack(sums, dim=2)

    def _phases(self, pitch: PerBin, owner: Int[Tensor, "b t mels"]) -> PerBin:
        """Sum pitches up over time; a peak goes on from the one in whose neighbourhood it arose.

        Where a bin comes from, and its advance since then, are known from frame to frame. Joined in pairs,
        they are known over two frames, then over four, and so on: no frame waits for all that came before.

        Source: Hillis and Steele 1986, "Data parallel algorithms", on sums of partial arrays.
        """
        own = pitch.double().gather(-1, owner)
        before = F.pad(own[:, :-1], (0, 0, 1, 0))
        before[:, 0] = own[:, 0]
        origin = owner
        phase = math.pi / self.mel.frame_rate * (own + before.gather(-1, owner))
        span = 1
        while span < pitch.shape[1]:
            recent = origin[:, span:]
            phase = torch.cat([phase[:, :span], phase[:, span:] + phase[:, :-span].gather(-1, recent)], dim=1)
            origin = torch.cat([origin[:, :span], origin[:, :-span].gather(-1, recent)], dim=1)
            span *= 2
        return (phase % (2 * math.pi)).float()


def _nearest(peaks: Bool[Tensor, "b t mels"]) -> Tensor:
    """Find for every bin the nearest peak of its frame, the lower of two; without any, the bin itself."""
    places = torch.arange(peaks.shape[-1], device=peaks.device).expand(peaks.shape)
    far = 4 * peaks.shape[-1]
    below = torch.where(peaks, places, -far).cummax(-1).values
    above = torch.where(peaks, places, far).flip(-1).cummin(-1).values.flip(-1)
    nearest = torch.where(places - below <= above - places, below, above)
    return torch.where(peaks.any(-1, keepdim=True), nearest, places)
