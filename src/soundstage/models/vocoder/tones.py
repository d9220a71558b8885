"""The sines that a log-mel spectrogram implies, in step with themselves from frame to frame.

    log-mel → peaks of each frame → pitch of each, from its two neighbours → phase, summed over time → sines

The spectrogram of a steady tone is the same in every frame. A network of convolutions makes the same of every
frame: its output repeats 100 times a second, and whatever the tone, there are whole multiples of 100 Hz. What
it lacks is a sum over time of pitch, which is phase. Here that sum is taken; the network only has to say how
much of each sine is heard, and when.

Ours; no released checkpoint has it. See docs/decisions/0012-sines-beside-the-vocoder.md.
"""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from soundstage.core.types import LogMel
from soundstage.dsp.mel import MelConfig, mel_filterbank

TOP = 5000.0  # Hz; above, multiples of 100 Hz are as near as a mel bin tells
BOTTOM = 40.0  # Hz
STEPS = 128  # pitches between which a bin distinguishes
LEAST = 0.1  # of a bin's own magnitude; a neighbour below it is no evidence: side lobes, other partials

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

    pitches: Float[Tensor, "mels steps"]  # Hz at which a bin is louder than its neighbours
    leanings: Float[Tensor, "mels steps"]  # how its neighbours compare there, see `_leaning`
    levels: Float[Tensor, "mels steps"]  # log-mel of a sine of amplitude one, there

    def __init__(self, mel: MelConfig, num_groups: int, samples_per_frame: int) -> None:
        super().__init__()
        self.mel, self.num_groups, self.samples_per_frame = mel, num_groups, samples_per_frame
        for name, table in zip(("pitches", "leanings", "levels"), _tables(mel), strict=True):
            self.register_buffer(name, table.clone(), persistent=False)
        self.num_bins = int((self.pitches[:, 0] > 0).nonzero().max()) + 1

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
        peaks = self._peaks(both)
        pitch, level = self._pitches(both)
        owner = _nearest(peaks)
        phase = self._phases(pitch, owner)
        # What is no peak is silent; the level of a sine of amplitude one is the same for every ear.
        amplitude = torch.where(peaks[:, None], (mel - level[:, None]).exp(), 0.0)
        moments = torch.arange(-self.samples_per_frame, self.samples_per_frame, device=mel.device)
        turning = 2 * math.pi / (self.mel.frame_rate * self.samples_per_frame) * moments
        fade = 1 - moments.abs() / self.samples_per_frame
        groups = torch.arange(self.num_bins, device=mel.device).tensor_split(self.num_groups)
        sums = []
        for bins in groups:
            angles = phase[..., bins, None] + pitch[..., bins, None] * turning  # (b, t, bins, 2 hops)
            sines = torch.cos(angles) * fade
            frames = torch.einsum("b t m n, b e t m -> b e t n", sines, amplitude[..., bins])
            before, after = frames.chunk(2, dim=-1)  # of a frame's centre
            sums.append((after + F.pad(before[:, :, 1:], (0, 0, 0, 1))).flatten(2))
        return torch.stack(sums, dim=2)

    def _peaks(self, both: PerBin) -> Bool[Tensor, "b t mels"]:
        below, above = F.pad(both, (1, 1), value=math.inf).unfold(-1, 3, 1).unbind(-1)[::2]
        in_range = torch.arange(both.shape[-1], device=both.device) < self.num_bins
        return (both > below) & (both >= above) & (self.pitches[:, 0] > 0) & in_range

    def _pitches(self, both: PerBin) -> tuple[PerBin, PerBin]:
        """Look up which sine would lean as each bin does; return its pitch in Hz and level."""
        leaning = _leaning(both)
        pitch, level = torch.zeros_like(both), torch.zeros_like(both)
        for place in range(self.num_bins):  # bin by bin: all at once would take much memory
            nearest = (leaning[..., place, None] - self.leanings[place]).abs().argmin(-1)
            pitch[..., place] = self.pitches[place][nearest]
            level[..., place] = self.levels[place][nearest]
        return pitch, level

    def _phases(self, pitch: PerBin, owner: Tensor) -> PerBin:
        """Sum pitches up over time; a peak goes on from the one in whose neighbourhood it arose."""
        own = pitch.double().gather(-1, owner)
        phase, before, phases = torch.zeros_like(own[:, 0]), own[:, 0], []
        for frame, belongs in zip(own.unbind(1), owner.unbind(1), strict=True):
            advance = math.pi / self.mel.frame_rate * (frame + before.gather(-1, belongs))
            phase = (phase.gather(-1, belongs) + advance) % (2 * math.pi)
            before = frame
            phases.append(phase)
        return torch.stack(phases, dim=1).float()


def _nearest(peaks: Bool[Tensor, "b t mels"]) -> Tensor:
    """Find for every bin the nearest peak of its frame, the lower of two; without any, the bin itself."""
    places = torch.arange(peaks.shape[-1], device=peaks.device).expand(peaks.shape)
    far = 4 * peaks.shape[-1]
    below = torch.where(peaks, places, -far).cummax(-1).values
    above = torch.where(peaks, places, far).flip(-1).cummin(-1).values.flip(-1)
    nearest = torch.where(places - below <= above - places, below, above)
    return torch.where(peaks.any(-1, keepdim=True), nearest, places)


def _leaning(levels: Float[Tensor, "... mels"]) -> Float[Tensor, "... mels"]:
    """Compare the neighbours of every bin: the log of the upper one's magnitude over the lower one's.

    With `LEAST` added to both it rises with the pitch of a sine, without exception.
    """
    ends = F.pad(levels, (1, 1), value=-math.inf)
    below, above = ((side - levels).exp() + LEAST for side in (ends[..., :-2], ends[..., 2:]))
    return (above / below).log()


@functools.cache
def _tables(mel: MelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Tabulate for each bin the pitches at which it is the loudest, its leaning and its level there."""
    with torch.inference_mode(False):
        fine = torch.arange(BOTTOM, TOP, 1.0, dtype=torch.float64, device="cpu")
        loudest = _response(fine, mel).argmax(1)
        tables = torch.zeros(3, mel.num_mels, STEPS, dtype=torch.float64, device="cpu")
        for place in range(1, int(loudest.max())):  # the first and the last have one neighbour only
            own = fine[loudest == place]
            if len(own) == 0:
                continue
            pitches = torch.linspace(float(own[0]), float(own[-1]), STEPS, dtype=torch.float64, device="cpu")
            response = _response(pitches, mel).clamp_min(1e-9).log()
            tables[:, place] = torch.stack([pitches, _leaning(response)[:, place], response[:, place]])
        pitches, leanings, levels = tables.float()
    return pitches, leanings, levels


def _response(pitches: Float[Tensor, " n"], mel: MelConfig) -> Float[Tensor, "n mels"]:
    """Compute the mel magnitudes of steady sines of amplitude one, by the transform of the Hann window."""
    bins = torch.arange(mel.n_fft // 2 + 1, dtype=torch.float64, device="cpu")
    offset = pitches[:, None] * mel.n_fft / mel.sample_rate - bins
    divisor = 1 - offset.square()
    shape = torch.where(divisor.abs() < 1e-6, 0.5, torch.sinc(offset) / divisor)
    return mel.win_length / 4 * shape.abs() @ mel_filterbank(mel).cpu()
