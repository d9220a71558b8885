"""Which sines a mel spectrum is made of: one or two for each peak.

    spectrum ─ minus the sines of other peaks ─► around a peak: one sine?  its two neighbours tell its pitch
                                                                two?       the pair of pitches that fits best

Magnitudes of sines that are 40 Hz apart or more add up in mel bins, nearly. So each peak is explained in
turn, by what the others leave, and twice over, as in an iteration of Gauss and Seidel.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from soundstage.dsp.mel import MelConfig, mel_filterbank

BOTTOM, TOP = 40.0, 5000.0  # Hz; above, the multiples of 100 Hz are as near as a mel bin tells
FINE, COARSE = 128, 24  # pitches between which a bin distinguishes; and when two are sought at once
REACH = 2  # bins to each side of a peak that are explained with it
APART = 25.0  # Hz at least between the two sines of a peak
QUIET = 1e-3  # magnitudes below it are no peaks; a sine of amplitude one has about 9
LEAST = 0.1  # of a bin's magnitude; a neighbour below it is no evidence: side lobes, other sines
FAINT = 0.1  # of the other's amplitude; a second sine below it is none
POOR, BETTER = 0.01, 0.5  # two sines: if one leaves more than POOR, and two less than BETTER times that
SWEEPS = 2  # through all peaks; and between the two sines of one

PerBin = Float[Tensor, "n mels"]


class Partials(NamedTuple):
    """Sines, at most one for each mel bin; where two peaks claim a bin, the upper one has it."""

    present: Bool[Tensor, "n mels"]
    pitch: PerBin  # Hz
    amplitude: PerBin


class PartialFinder(nn.Module):
    """Explain mel spectra by sines; there is nothing to train."""

    pitches: Float[Tensor, "mels fine"]  # Hz at which a bin is the loudest; zeros: it never is
    leanings: Float[Tensor, "mels fine"]  # how its neighbours compare there, see `_leaning`
    responses: Float[Tensor, "mels fine padded"]  # magnitudes of a sine of amplitude one; REACH more bins

    def __init__(self, mel: MelConfig) -> None:
        super().__init__()
        for name, table in zip(("pitches", "leanings", "responses"), _tables(mel), strict=True):
            self.register_buffer(name, table.clone(), persistent=False)
        heard = self.pitches[:, 0] > 0
        self.places = range(int(heard.nonzero().min()), int(heard.nonzero().max()) + 1)

    def forward(self, spectra: PerBin) -> Partials:
        """Find the sines of mel magnitudes (n, mels)."""
        peaks = self._peaks(spectra)
        found = Partials(peaks.clone(), torch.zeros_like(spectra), torch.zeros_like(spectra))
        whole = F.pad(spectra, (REACH, REACH))
        parts = whole.new_zeros(spectra.shape[1], *whole.shape)  # what the sines of each peak explain
        explained = torch.zeros_like(whole)
        for _ in range(SWEEPS):
            found.present.copy_(peaks)
            for place in self.places:
                rows = peaks[:, place].nonzero()[:, 0]
                if len(rows):
                    left = (whole[rows] - explained[rows] + parts[place, rows]).clamp_min(0)
                    part = self._explain(left, place, rows, found)
                    explained[rows] += part - parts[place, rows]
                    parts[place, rows] = part
        return found

    def _peaks(self, spectra: PerBin) -> Bool[Tensor, "n mels"]:
        below, above = F.pad(spectra, (1, 1), value=math.inf).unfold(-1, 3, 1).unbind(-1)[::2]
        return (spectra > below) & (spectra >= above) & (spectra > QUIET) & (self.pitches[:, 0] > 0)

    def _explain(
        self, left: Float[Tensor, "m padded"], place: int, rows: Tensor, found: Partials
    ) -> Float[Tensor, "m padded"]:
        """Note the one or two sines of a peak; return what they explain."""
        beside, second = self._second(left, place)
        for _ in range(SWEEPS):
            pitch, amplitude, first = self._look_up(left - second, place)
            found.pitch[rows, place], found.amplitude[rows, place] = pitch, amplitude
            for other in (place - 1, place + 1):
                own = (beside == other).nonzero()[:, 0]
                if len(own) == 0:
                    continue
                pitch, amplitude, second[own] = self._look_up((left - first)[own], other)
                found.present[rows[own], other] = True
                found.pitch[rows[own], other], found.amplitude[rows[own], other] = pitch, amplitude
        return first + second

    def _second(
        self, left: Float[Tensor, "m padded"], place: int
    ) -> tuple[Tensor, Float[Tensor, "m padded"]]:
        """Find where one sine does not suffice; return the other's bin, else -1, and what it explains."""
        others = [other for other in (place - 1, place + 1) if other in self.places]
        coarse = slice(None, None, FINE // COARSE)
        near = slice(place, place + 2 * REACH + 1)
        first, second = self.responses[place, coarse], self.responses[others][:, coarse].flatten(0, 1)
        bins = torch.tensor(others, device=left.device).repeat_interleave(len(second) // len(others))
        apart = (self.pitches[place, coarse, None] - self.pitches[others][:, coarse].flatten()).abs() > APART
        index, amplitude = _fit_two(left[:, near], first[:, near], second[:, near], apart)
        return torch.where(index < 0, -1, bins[index]), amplitude[:, None] * second[index]

    def _look_up(
        self, left: Float[Tensor, "m padded"], place: int
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, "m padded"]]:
        """Look up which sine would lean as a bin does: its pitch, its amplitude, and what it explains."""
        around = left[:, place + REACH - 1 : place + REACH + 2].clamp_min(1e-9)
        nearest = (_leaning(around)[:, 1, None] - self.leanings[place]).abs().argmin(-1)
        response = self.responses[place][nearest]
        amplitude = around[:, 1] / response[:, place + REACH]
        return self.pitches[place][nearest], amplitude, amplitude[:, None] * response


def _fit_two(
    spectra: Float[Tensor, "m near"],
    first: Float[Tensor, "a near"],
    second: Float[Tensor, "b near"],
    allowed: Bool[Tensor, "a b"],
) -> tuple[Tensor, Float[Tensor, " m"]]:
    """Fit one response, or one of each kind, by least squares.

    Returns:
        The second one's index, -1 where one suffices, and its amplitude, 0 there.
    """
    sizes = second.norm(dim=1)
    first, second = F.normalize(first, dim=1), second / sizes[:, None]
    one, other = spectra @ first.mT, spectra @ second.mT  # (m, a), (m, b)
    energy = spectra.square().sum(1)
    missed_by_one = energy - one.amax(1).square()
    overlap = first @ second.mT
    one, other = one[:, :, None], other[:, None, :]
    share = (one - overlap * other) / (1 - overlap.square())
    other_share = (other - overlap * one) / (1 - overlap.square())
    sound = allowed & (share > FAINT * other_share) & (other_share > FAINT * share)
    explained = torch.where(sound, share * one + other_share * other, 0.0).flatten(1)
    best, index = explained.max(1)
    two = (missed_by_one > POOR * energy) & (energy - best < BETTER * missed_by_one)
    amplitude = other_share.flatten(1).gather(1, index[:, None])[:, 0] / sizes[index % len(second)]
    return torch.where(two, index % len(second), -1), torch.where(two, amplitude, 0.0)


def _leaning(spectra: Float[Tensor, "... mels"]) -> Float[Tensor, "... mels"]:
    """Compare the neighbours of every bin: the log of the upper one's magnitude over the lower one's.

    With `LEAST` of the bin's own added to both it rises with the pitch of a sine, without exception.
    """
    ends = F.pad(spectra, (1, 1))
    below, above = (side / spectra + LEAST for side in (ends[..., :-2], ends[..., 2:]))
    return (above / below).log()


@functools.cache
def _tables(mel: MelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Tabulate for each bin the pitches at which it is the loudest, its leaning and all magnitudes there."""
    with torch.inference_mode(False):
        hertz = torch.arange(BOTTOM, TOP, 1.0, dtype=torch.float64, device="cpu")
        loudest = _response(hertz, mel).argmax(1)
        pitches = torch.zeros(mel.num_mels, FINE, dtype=torch.float64, device="cpu")
        leanings = torch.zeros_like(pitches)
        responses = torch.zeros(mel.num_mels, FINE, mel.num_mels, dtype=torch.float64, device="cpu")
        for place in range(1, int(loudest.max())):  # the first and the last have one neighbour only
            own = hertz[loudest == place]
            if len(own) == 0:
                continue
            low, high = float(own[0]) - 0.5, float(own[-1]) + 0.5
            pitches[place] = torch.linspace(low, high, FINE, dtype=torch.float64, device="cpu")
            responses[place] = _response(pitches[place], mel)
            leanings[place] = _leaning(responses[place].clamp_min(1e-9))[:, place]
        return pitches.float(), leanings.float(), F.pad(responses, (REACH, REACH)).float()


def _response(pitches: Float[Tensor, " n"], mel: MelConfig) -> Float[Tensor, "n mels"]:
    """Compute the mel magnitudes of steady sines of amplitude one, by the transform of the Hann window."""
    highest = min(mel.n_fft // 2, round(1.1 * TOP * mel.n_fft / mel.sample_rate))  # none is heard above
    bins = torch.arange(highest + 1, dtype=torch.float64, device="cpu")
    offset = pitches[:, None] * mel.n_fft / mel.sample_rate - bins
    divisor = 1 - offset.square()
    shape = torch.where(divisor.abs() < 1e-6, 0.5, torch.sinc(offset) / divisor)
    return mel.win_length / 4 * shape.abs() @ mel_filterbank(mel)[: highest + 1]
