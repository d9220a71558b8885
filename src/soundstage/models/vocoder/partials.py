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
from jaxtyping import Bool, Float, Int
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
    """Explain mel spectra by sines; there is nothing to train.

    Spectra do not depend on each other, the peaks of one do: the first peaks of all spectra are explained at
    once, then all second ones, so that a GPU is given few and large operations.
    """

    pitches: Float[Tensor, "mels fine"]  # Hz at which a bin is the loudest; zeros: it never is
    leanings: Float[Tensor, "mels fine"]  # how its neighbours compare there, see `_leaning`
    responses: Float[Tensor, "mels fine padded"]  # magnitudes of a sine of amplitude one; REACH more bins

    def __init__(self, mel: MelConfig) -> None:
        super().__init__()
        for name, table in zip(("pitches", "leanings", "responses"), _tables(mel), strict=True):
            self.register_buffer(name, table.clone(), persistent=False)
        heard = self.pitches[:, 0] > 0
        self.places = range(int(heard.nonzero().min()), int(heard.nonzero().max()) + 1)
        self.pairs = _Pairs(self.pitches, self.responses, self.places)

    def forward(self, spectra: PerBin) -> Partials:
        """Find the sines of mel magnitudes (n, mels)."""
        peaks = self._peaks(spectra)
        counts, order = peaks.sum(1).sort(descending=True)  # those with k peaks or more come first, for all k
        sizes = (counts[:, None] > self.pairs.bins).sum(0).tolist()  # all that is waited for
        peaks, whole = peaks[order], F.pad(spectra[order], (REACH, REACH))
        places = peaks.byte().argsort(dim=1, descending=True, stable=True)
        found = Partials(peaks.clone(), torch.zeros_like(spectra), torch.zeros_like(spectra))
        parts = [
            torch.zeros_like(whole[:size]) for size in sizes if size
        ]  # what the sines of each peak explain
        explained = torch.zeros_like(whole)
        for _ in range(SWEEPS):
            found.present.copy_(peaks)
            for index, part in enumerate(parts):
                some = slice(len(part))
                left = (whole[some] - explained[some] + part).clamp_min(0)
                parts[index] = self._explain(left, places[some, index], Partials(*(t[some] for t in found)))
                explained[some] += parts[index] - part
        back = order.argsort()
        return Partials(*(table[back] for table in found))

    def _peaks(self, spectra: PerBin) -> Bool[Tensor, "n mels"]:
        below, above = F.pad(spectra, (1, 1), value=math.inf).unfold(-1, 3, 1).unbind(-1)[::2]
        return (spectra > below) & (spectra >= above) & (spectra > QUIET) & (self.pitches[:, 0] > 0)

    def _explain(
        self, left: Float[Tensor, "m padded"], place: Int[Tensor, " m"], found: Partials
    ) -> Float[Tensor, "m padded"]:
        """Note the one or two sines of a peak of each spectrum; return what they explain."""
        beside, fine, amplitude = self.pairs(left, place)
        is_two = beside >= 0
        other = torch.where(is_two, beside, place)
        second: Tensor = amplitude[:, None] * self.responses[other, fine]
        for _ in range(SWEEPS):
            pitch, amplitude, first = self._look_up(left - second, place)
            _note(found, place, pitch, amplitude)
            its_pitch, its_amplitude, response = self._look_up(left - first, other)
            second = torch.where(is_two[:, None], response, 0.0)
            pitch = torch.where(is_two, its_pitch, pitch)  # where there is one, it is noted once more
            _note(found, other, pitch, torch.where(is_two, its_amplitude, amplitude))
        return first + second

    def _look_up(
        self, left: Float[Tensor, "m padded"], place: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, "m padded"]]:
        """Look up which sine would lean as a bin does: its pitch, its amplitude, and what it explains."""
        around = left.gather(1, place[:, None] + self.pairs.offsets[REACH - 1 : REACH + 2]).clamp_min(1e-9)
        nearest = (_leaning(around)[:, 1, None] - self.leanings[place]).abs().argmin(-1)
        response = self.responses[place, nearest]
        amplitude = around[:, 1] / response.gather(1, place[:, None] + REACH)[:, 0]
        return self.pitches[place, nearest], amplitude, amplitude[:, None] * response


class _Pairs(nn.Module):
    """Finds where one sine does not suffice for a peak.

    By least squares over the bins around it: one response of the peak's own bin, or one of it and one of a
    neighbouring bin. What does not depend on the spectra is tabulated, for each bin that can be a peak.
    """

    bins: Int[Tensor, " mels"]  # 0, 1, 2 ...
    offsets: Int[Tensor, " near"]  # likewise
    first: Float[Tensor, "mels coarse near"]  # of the own bin, of norm one
    second: Float[Tensor, "mels others near"]  # of the lower and then the upper neighbour, likewise
    sizes: Float[Tensor, "mels others"]  # their norms before
    overlap: Float[Tensor, "mels coarse others"]
    apart: Bool[Tensor, "mels coarse others"]  # whether two sines may be there at once

    def __init__(self, pitches: Tensor, responses: Tensor, places: range) -> None:
        super().__init__()
        step = FINE // COARSE
        offsets = torch.arange(2 * REACH + 1, device=pitches.device)
        bins = torch.arange(len(pitches), device=pitches.device)
        others = (bins[:, None] + bins.new_tensor([-1, 1])).clamp(0, len(bins) - 1)  # (mels, 2)
        near = (bins[:, None] + offsets)[:, None, None]  # (mels, 1, 1, near)
        own, coarse = responses[:, ::step], responses[:, ::step][others]
        first = own.gather(2, near[:, 0].expand(-1, own.shape[1], -1))
        second = coarse.gather(3, near.expand(-1, 2, own.shape[1], -1)).flatten(1, 2)
        sizes = second.norm(dim=2)
        first, second = F.normalize(first, dim=2), F.normalize(second, dim=2)
        distance = pitches[:, ::step, None] - pitches[:, ::step][others].flatten(1)[:, None]
        heard = (others >= places.start) & (others < places.stop)
        apart = (distance.abs() > APART) & heard.repeat_interleave(own.shape[1], dim=1)[:, None]
        tables = {
            "bins": bins,
            "offsets": offsets,
            "first": first,
            "second": second,
            "sizes": sizes,
            "overlap": first @ second.mT,
            "apart": apart,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(
        self, left: Float[Tensor, "m padded"], place: Int[Tensor, " m"]
    ) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Float[Tensor, " m"]]:
        """Fit what is left of spectra around a peak of each.

        Returns:
            For each spectrum the second sine's bin, -1 where one suffices; which of that bin's fine pitches
            it has; and its amplitude, 0 where one suffices.
        """
        spectra = left.gather(1, place[:, None] + self.offsets)[:, None]  # (m, 1, near)
        one, other = spectra @ self.first[place].mT, spectra @ self.second[place].mT
        energy = spectra.square().sum(2)[:, 0]
        missed_by_one = energy - one.amax(2)[:, 0].square()
        one, overlap = one.mT, self.overlap[place]
        rest = 1 - overlap.square()
        share = (one - overlap * other) / rest
        other_share = (other - overlap * one) / rest
        sound = self.apart[place] & (share > FAINT * other_share) & (other_share > FAINT * share)
        explained = torch.where(sound, share * one + other_share * other, 0.0).flatten(1)
        best, index = explained.max(1)
        two = (missed_by_one > POOR * energy) & (energy - best < BETTER * missed_by_one)
        candidate = index % overlap.shape[2]
        amplitude = other_share.flatten(1).gather(1, index[:, None])[:, 0] / self.sizes[place, candidate]
        is_upper, coarse = candidate // overlap.shape[1], candidate % overlap.shape[1]
        beside = torch.where(two, place - 1 + 2 * is_upper, -1)
        return beside, coarse * (FINE // COARSE), torch.where(two, amplitude, 0.0)


def _note(found: Partials, place: Int[Tensor, " m"], pitch: Tensor, amplitude: Tensor) -> None:
    """Write a sine of each spectrum."""
    index = place[:, None]
    found.present.scatter_(1, index, True)
    found.pitch.scatter_(1, index, pitch[:, None])
    found.amplitude.scatter_(1, index, amplitude[:, None])


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
