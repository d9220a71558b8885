"""The sines of mel spectra, found peak by peak: slower than `PartialFinder`, and easier to see through."""

import torch
import torch.nn.functional as F

from soundstage.models.vocoder.partials import (
    APART,
    BETTER,
    COARSE,
    FAINT,
    FINE,
    POOR,
    REACH,
    SWEEPS,
    Partials,
    _leaning,
)


def find(finder, spectra):
    """Explain the peaks of all spectra that lie in one bin, then those of the next bin, and so on."""
    peaks = finder._peaks(spectra)
    found = Partials(peaks.clone(), torch.zeros_like(spectra), torch.zeros_like(spectra))
    whole = F.pad(spectra, (REACH, REACH))
    parts = whole.new_zeros(spectra.shape[1], *whole.shape)
    explained = torch.zeros_like(whole)
    for _ in range(SWEEPS):
        found.present.copy_(peaks)
        for place in finder.places:
            rows = peaks[:, place].nonzero()[:, 0]
            if len(rows):
                left = (whole[rows] - explained[rows] + parts[place, rows]).clamp_min(0)
                part = explain(finder, left, place, rows, found)
                explained[rows] += part - parts[place, rows]
                parts[place, rows] = part
    return found


def explain(finder, left, place, rows, found):
    beside, second = find_second(finder, left, place)
    for _ in range(SWEEPS):
        pitch, amplitude, first = look_up(finder, left - second, place)
        found.pitch[rows, place], found.amplitude[rows, place] = pitch, amplitude
        for other in (place - 1, place + 1):
            own = (beside == other).nonzero()[:, 0]
            if len(own) == 0:
                continue
            pitch, amplitude, second[own] = look_up(finder, (left - first)[own], other)
            found.present[rows[own], other] = True
            found.pitch[rows[own], other], found.amplitude[rows[own], other] = pitch, amplitude
    return first + second


def find_second(finder, left, place):
    others = [other for other in (place - 1, place + 1) if other in finder.places]
    coarse = slice(None, None, FINE // COARSE)
    near = slice(place, place + 2 * REACH + 1)
    first, second = finder.responses[place, coarse], finder.responses[others][:, coarse].flatten(0, 1)
    bins = torch.tensor(others).repeat_interleave(len(second) // len(others))
    distances = finder.pitches[place, coarse, None] - finder.pitches[others][:, coarse].flatten()
    index, amplitude = fit_two(left[:, near], first[:, near], second[:, near], distances.abs() > APART)
    return torch.where(index < 0, -1, bins[index]), amplitude[:, None] * second[index]


def look_up(finder, left, place):
    around = left[:, place + REACH - 1 : place + REACH + 2].clamp_min(1e-9)
    nearest = (_leaning(around)[:, 1, None] - finder.leanings[place]).abs().argmin(-1)
    response = finder.responses[place][nearest]
    amplitude = around[:, 1] / response[:, place + REACH]
    return finder.pitches[place][nearest], amplitude, amplitude[:, None] * response


def fit_two(spectra, first, second, allowed):
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
