"""The one timeline of a talking face: syllables with exact times, and the tracks that mouth and voice follow.

Picture and sound read the same tracks, so lips and voice cannot drift apart: the mouth that opens for a vowel
is the mouth whose opening makes it louder.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Manner = Literal["voiced stop", "voiceless stop", "nasal", "lateral", "fricative"]
Key = tuple[float, float]  # time in seconds, value


class Vowel(NamedTuple):
    """How a vowel sounds and looks."""

    f1: float  # Hz, of a low voice
    f2: float  # Hz
    f3: float  # Hz
    aperture: float  # of the mouth, 1 = as wide as it opens
    spread: float  # width of the mouth, 1 = as wide as it gets


class Consonant(NamedTuple):
    """How a consonant sounds and looks; its place shows in where the vowel's formants come from."""

    manner: Manner
    f2: float  # Hz, the locus of the second formant
    f3: float  # Hz
    pull: float  # 1 = the second formant starts at the locus, 0 = at the vowel's own
    aperture: float
    seconds: float  # from its start to its release
    noise: float = 0.0  # Hz, centre of burst or hiss
    noise_level: float = 0.0  # 1 = as loud as an open vowel
    noise_seconds: float = 0.0  # of a burst


VOWELS: dict[str, Vowel] = {
    "a": Vowel(760.0, 1240.0, 2550.0, 1.00, 0.80),
    "e": Vowel(500.0, 1900.0, 2600.0, 0.60, 0.95),
    "i": Vowel(290.0, 2300.0, 3050.0, 0.36, 1.00),
    "o": Vowel(500.0, 840.0, 2450.0, 0.64, 0.50),
    "u": Vowel(310.0, 680.0, 2250.0, 0.38, 0.34),
}
"""The aperture follows the first formant; o and u are round, i and e are spread.

Source: the means of Peterson & Barney 1952, moved a little apart.
"""

CONSONANTS: dict[str, Consonant] = {
    "b": Consonant("voiced stop", 750.0, 2150.0, 0.9, 0.0, 0.095, 650.0, 0.6, 0.009),
    "p": Consonant("voiceless stop", 750.0, 2150.0, 0.9, 0.0, 0.095, 750.0, 0.8, 0.014),
    "m": Consonant("nasal", 850.0, 2150.0, 0.9, 0.0, 0.105),
    "d": Consonant("voiced stop", 1850.0, 2850.0, 0.8, 0.10, 0.085, 4300.0, 0.7, 0.012),
    "k": Consonant("voiceless stop", 1750.0, 2100.0, 0.45, 0.14, 0.095, 1900.0, 0.9, 0.024),
    "l": Consonant("lateral", 1150.0, 2900.0, 0.85, 0.20, 0.095),
    "n": Consonant("nasal", 1750.0, 2750.0, 0.85, 0.08, 0.100),
    "s": Consonant("fricative", 1750.0, 2700.0, 0.8, 0.08, 0.130, 6000.0, 0.4),
}
"""Stops differ by voice and by where their burst lies, nasals and l by their murmur, s by its hiss.

`t` is left out: through a small audio codec it lies between d, k and s.
Source: loci after Delattre, Liberman & Cooper 1955.
"""

LIPS = ("b", "m", "p")  # close the mouth
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)

REST_APERTURE, REST_SPREAD = 0.03, 0.74
OPEN_SECONDS = 0.075  # from the release to the vowel's aperture
CLOSE_SECONDS = 0.085  # from the vowel's aperture to the mouth at rest
GLIDE_SECONDS = 0.055  # of the formants from the consonant to the vowel
RISE = 0.012  # s in which the voice sets in
FALL = 0.06  # s in which it ends
VOICE_ONSET = 0.045  # s from the release of a voiceless stop to the voice
MURMUR = 250.0  # Hz, first formant behind closed lips
HUM = 0.7  # of the voice in a nasal or lateral consonant
VOICE_BAR = 0.45  # of the voice that passes a voiced stop's closure


class Track(NamedTuple):
    """A value over time: smooth steps from key to key, constant before the first and after the last."""

    times: tuple[float, ...]  # s, rising
    values: tuple[float, ...]

    @classmethod
    def of(cls, keys: Iterable[Key]) -> "Track":
        """Take keys in order; one that comes too early waits for the one before it."""
        times: list[float] = []
        values: list[float] = []
        for time, value in keys:
            times.append(max(time, times[-1] + 1e-6) if times else time)
            values.append(value)
        return cls(tuple(times), tuple(values))

    def at(self, time: float) -> float:
        """Value at `time` seconds."""
        index = bisect_right(self.times, time)
        if index == 0:
            return self.values[0]
        if index == len(self.times):
            return self.values[-1]
        before, after = self.times[index - 1], self.times[index]
        part = (time - before) / (after - before)
        part = part * part * (3 - 2 * part)
        return self.values[index - 1] + part * (self.values[index] - self.values[index - 1])


@dataclass(frozen=True, kw_only=True)
class Syllable:
    """A consonant and a vowel; times in seconds."""

    text: str
    start: float  # where the consonant begins
    release: float  # where the mouth opens for the vowel
    end: float  # where the vowel has died away

    @property
    def consonant(self) -> Consonant:
        """Properties of the first letter."""
        return CONSONANTS[self.text[0]]

    @property
    def vowel(self) -> Vowel:
        """Properties of the second letter."""
        return VOWELS[self.text[1]]

    @property
    def is_voiceless(self) -> bool:
        """Whether the voice waits for a moment after the release."""
        return self.consonant.manner == "voiceless stop"


@dataclass(frozen=True)
class Utterance:
    """Syllables one after the other, as tracks of a mouth and a vocal tract."""

    syllables: tuple[Syllable, ...]

    @cached_property
    def aperture(self) -> Track:
        """How far the mouth is open: 0 = lips closed, 1 = as in a."""
        keys: list[Key] = [(0.0, REST_APERTURE)]
        for one in self.syllables:
            closed, wide = one.consonant.aperture, one.vowel.aperture
            keys += [
                (one.start - 0.02, REST_APERTURE),
                (one.start + 0.025, closed),
                (one.release, closed),
                (one.release + OPEN_SECONDS, wide),
                (one.end - CLOSE_SECONDS, wide),
                (one.end, REST_APERTURE),
            ]
        return Track.of(keys)

    @cached_property
    def spread(self) -> Track:
        """How wide the mouth is; lips are rounded already while the consonant lasts."""
        keys: list[Key] = [(0.0, REST_SPREAD)]
        for one in self.syllables:
            wide = one.vowel.spread
            keys += [
                (one.start - 0.03, REST_SPREAD),
                (one.release, 0.5 * (REST_SPREAD + wide)),
                (one.release + 0.06, wide),
                (one.end - CLOSE_SECONDS, wide),
                (one.end + 0.03, REST_SPREAD),
            ]
        return Track.of(keys)

    @cached_property
    def tongue(self) -> Track:
        """How far the tip of the tongue is raised, 1 = to the teeth; seen in l, n and d."""
        keys: list[Key] = [(0.0, 0.0)]
        for one in self.syllables:
            raised = {"l": 1.0, "n": 0.7, "d": 0.7}.get(one.text[0], 0.0)
            keys += [(one.start - 0.01, 0.0), (one.start + 0.03, raised), (one.release, raised)]
            keys += [(one.release + 0.05, 0.0)]
        return Track.of(keys)

    @cached_property
    def voice(self) -> Track:
        """Strength of the vocal cords."""
        keys: list[Key] = [(0.0, 0.0)]
        for one in self.syllables:
            keys += [(one.start, 0.0), *_closure_keys(one), (one.end - FALL, 1.0), (one.end, 0.0)]
        return Track.of(keys)

    @cached_property
    def breath(self) -> Track:
        """Strength of the breath that a voiceless stop lets out before the voice begins."""
        keys: list[Key] = [(0.0, 0.0)]
        for one in self.syllables:
            if one.is_voiceless:
                begin, level = one.release + 0.004, 0.2 + 0.8 * one.vowel.aperture
                keys += [(one.release, 0.0), (begin, level), (one.release + 0.7 * VOICE_ONSET, 0.7 * level)]
                keys += [(one.release + VOICE_ONSET + 0.015, 0.0)]
        return Track.of(keys)

    @cached_property
    def hiss(self) -> Track:
        """Strength of the noise at the place of the consonant: bursts and s."""
        keys: list[Key] = [(0.0, 0.0)]
        for one in self.syllables:
            level = one.consonant.noise_level
            if one.consonant.manner == "fricative":
                keys += [(one.start, 0.0), (one.start + 0.035, level), (one.release - 0.02, level)]
                keys += [(one.release + 0.012, 0.0)]
            elif one.consonant.noise:
                fade = one.release + one.consonant.noise_seconds
                keys += [(one.release - 0.001, 0.0), (one.release + 0.0005, level), (fade, 0.0)]
        return Track.of(keys)

    @cached_property
    def hiss_pitch(self) -> Track:
        """Centre of that noise in Hz; that of a k goes with the vowel."""
        keys = []
        for one in self.syllables:
            centre = one.consonant.noise or 1000.0
            if one.text[0] == "k":
                centre = min(max(one.vowel.f2 * 1.05, 1250.0), 2600.0)
            keys += [(one.start - 0.01, centre), (one.release + 0.05, centre)]
        return Track.of(keys)

    @cached_property
    def formants(self) -> tuple[Track, Track, Track]:
        """First three resonances of the vocal tract in Hz, of a low voice."""
        keys: tuple[list[Key], list[Key], list[Key]] = ([], [], [])
        for one in self.syllables:
            for track, first, last in zip(keys, _locus(one), one.vowel[:3], strict=True):
                track += [
                    (one.start - 0.005, first),
                    (one.release, first),
                    (one.release + GLIDE_SECONDS, last),
                    (one.end + 0.005, last),
                ]
        return Track.of(keys[0]), Track.of(keys[1]), Track.of(keys[2])

    @cached_property
    def nose(self) -> Track:
        """How far the way through the nose is open."""
        keys: list[Key] = [(-1.0, 0.0)]
        for one in self.syllables:
            if one.consonant.manner == "nasal":
                keys += [(one.start - 0.005, 1.0), (one.release - 0.005, 1.0), (one.release + 0.03, 0.0)]
            keys += [(one.end, 0.0)]
        return Track.of(keys)

    @cached_property
    def antiresonance(self) -> Track:
        """What the closed mouth behind open nostrils swallows, in Hz; lower for m than for n."""
        keys = [
            key
            for one in self.syllables
            for zero in (1000.0 if one.text[0] == "m" else 1900.0,)
            for key in ((one.start - 0.005, zero), (one.end, zero))
        ]
        return Track.of(keys)

    @cached_property
    def melody(self) -> Track:
        """Pitch as a factor: it falls over the utterance and rises a little in each vowel."""
        first, last = self.syllables[0].start, self.syllables[-1].end
        keys: list[Key] = []
        for one in self.syllables:
            for time, accent in ((one.start, 0.97), (one.release + 0.07, 1.05), (one.end, 0.95)):
                keys.append((time, accent * (1.04 - 0.10 * (time - first) / (last - first))))
        return Track.of(keys)


def _closure_keys(one: Syllable) -> list[Key]:
    """Voice from the start of a consonant to full voice."""
    match one.consonant.manner:
        case "nasal" | "lateral":
            return [(one.start + 0.03, HUM), (one.release, HUM), (one.release + RISE, 1.0)]
        case "voiced stop":
            bar = [(one.start + 0.02, VOICE_BAR), (one.release - 0.008, VOICE_BAR)]
            return [*bar, (one.release - 0.002, 0.1), (one.release + RISE, 1.0)]
        case "voiceless stop":
            onset = one.release + VOICE_ONSET
            return [(onset - 0.005, 0.0), (onset + RISE, 1.0)]
        case "fricative":
            return [(one.release - 0.015, 0.0), (one.release + RISE, 1.0)]


def _locus(one: Syllable) -> tuple[float, float, float]:
    """Formants at the release of the consonant."""
    consonant, vowel = one.consonant, one.vowel
    f1 = 350.0 if consonant.manner == "lateral" else MURMUR
    return f1, vowel.f2 + consonant.pull * (consonant.f2 - vowel.f2), consonant.f3


def most_syllables(duration: float) -> int:
    """How many syllables a clip of `duration` seconds has room for, 1 to 4."""
    return min(max(math.floor((duration - 0.25) / 0.40), 1), 4)


def spoken(texts: Sequence[str], *, start: float, pace: Sequence[float], gaps: Sequence[float]) -> Utterance:
    """Lay syllables out in time.

    Args:
        start: Seconds until the first consonant.
        pace: Seconds of each vowel from its release.
        gaps: Seconds of silence after each syllable.
    """
    syllables = []
    time = start
    for text, seconds, gap in zip(texts, pace, gaps, strict=True):
        release = time + CONSONANTS[text[0]].seconds
        syllables.append(Syllable(text=text, start=time, release=release, end=release + seconds))
        time = release + seconds + gap
    return Utterance(tuple(syllables))
