"""Voices: pitch, formants, bursts, murmurs and hiss are where the timeline says, measured in the sound."""

import math
import random
from dataclasses import replace

import pytest
import torch

from soundstage.data.world.face import TRACTS, VOICES, sample_face
from soundstage.data.world.face_speech import CONSONANTS, VOICE_ONSET, VOWELS, spoken
from soundstage.data.world.voice import PEAK, UPPER_FORMANTS, speak

RATE = 24_000
SECONDS = 49 / 24
FACES = [sample_face(random.Random(seed), split="train", duration=SECONDS, aspect=1.0) for seed in range(8)]


def saying(*texts, pitch=110.0, tract=1.0, x=0.5, start=0.2):
    said = spoken(texts, start=start, pace=[0.26] * len(texts), gaps=[0.06] * len(texts))
    return replace(FACES[0], utterance=said, pitch=pitch, tract=tract, x=x)


def sound(*faces, duration=1.0, rate=RATE):
    return speak(faces, duration=duration, sample_rate=rate)


def piece(face, begin, end, rate=RATE):
    """Mono sound from `begin` to `end` seconds after the first release."""
    release = face.utterance.syllables[0].release
    first, last = round((release + begin) * rate), round((release + end) * rate)
    return sound(face, rate=rate)[0].sum(0)[first:last]


def power(samples, low, high, rate=RATE):
    """Power between two frequencies."""
    spectrum = torch.fft.rfft(samples * torch.hann_window(len(samples)), 8192).abs().square()
    step = rate / 8192
    return float(spectrum[int(low / step) : int(high / step)].sum())


def pitch_of(samples, low=80.0, high=300.0):
    """Frequency of the highest peak of the autocorrelation."""
    spectrum = torch.fft.rfft(samples, 2 * len(samples)).abs().square()
    curve = torch.fft.irfft(spectrum)
    first, last = int(RATE / high), int(RATE / low)
    place = first + int(curve[first:last].argmax())
    left, middle, right = (float(curve[place + step]) for step in (-1, 0, 1))
    return RATE / (place + 0.5 * (left - right) / (left - 2 * middle + right))


def formants_of(samples, count):
    """Peaks of a smooth spectrum: linear prediction by the autocorrelation method, after pre-emphasis."""
    spectrum = torch.fft.rfft(samples.double() * torch.hann_window(len(samples), dtype=torch.float64))
    x = torch.fft.irfft(spectrum[: len(samples) // 6 + 1], len(samples) // 3)  # a third of the rate
    x = x[1:] - 0.9 * x[:-1]
    order = 12
    correlation = torch.fft.irfft(torch.fft.rfft(x, 2 * len(x)).abs().square())[: order + 1]
    index = (torch.arange(order)[:, None] - torch.arange(order)).abs()
    ridge = 1e-9 * correlation[0] * torch.eye(order, dtype=torch.float64)
    weights = torch.linalg.solve(correlation[index] + ridge, correlation[1:])
    response = 1 / torch.fft.rfft(torch.cat((torch.ones(1), -weights)), 4096).abs()
    peaks = (response[1:-1] > response[:-2]) & (response[1:-1] > response[2:])
    return [(int(place) + 1) * RATE / 3 / 4096 for place in peaks.nonzero()[:, 0]][:count]


def test_waveform_has_the_asked_shape_and_never_clips():
    waveform = speak(FACES, duration=2.5, sample_rate=RATE)
    assert waveform.shape == (8, 2, 60_000)
    assert waveform.isfinite().all()
    assert waveform.abs().max() < PEAK - 0.05
    assert (waveform.abs().amax((1, 2)) > 0.15).all()


def test_silence_before_between_and_after():
    face = saying("da", "mo")
    mono = sound(face, duration=1.5)[0].abs().amax(0)
    first, last = face.utterance.syllables
    gap = (first.end + last.start) / 2
    assert mono[: round((first.start - 0.012) * RATE)].max() < 1e-4
    assert mono[round((gap - 0.005) * RATE) : round((gap + 0.005) * RATE)].max() < 0.01
    assert mono[round((last.end + 0.05) * RATE) :].max() < 1e-4


@pytest.mark.parametrize("pitch", [100.0, 130.0, 210.0, 250.0])
@pytest.mark.parametrize("vowel", ["a", "i"])
def test_pitch_is_exact(pitch, vowel):
    face = saying("b" + vowel, pitch=pitch)
    begin, end = 0.08, 0.16
    release = face.utterance.syllables[0].release
    wanted = pitch * face.utterance.melody.at(release + (begin + end) / 2)
    cents = 1200 * math.log2(pitch_of(piece(face, begin, end)) / wanted)
    assert abs(cents) < 35  # the melody moves by more within the window


@pytest.mark.parametrize("vowel", list(VOWELS))
def test_vowels_have_their_formants(vowel):
    face = saying("d" + vowel, pitch=101.0)
    found = formants_of(piece(face, 0.09, 0.17), 3)
    wanted = VOWELS[vowel][:2]
    for formant in wanted:
        nearest = min(found, key=lambda one: abs(one - formant))
        assert abs(nearest - formant) < max(0.12 * formant, 75), (vowel, formant, found)


def test_a_short_tract_raises_every_formant():
    low, high = (formants_of(piece(saying("da", tract=t), 0.09, 0.17), 2) for t in (1.0, 1.15))
    assert high[1] / low[1] == pytest.approx(1.15, abs=0.06)


def test_high_voices_are_higher_and_smaller_than_low_ones():
    assert VOICES["high"][0] > 1.4 * VOICES["low"][1]
    assert TRACTS["high"][0] > TRACTS["low"][1]


@pytest.mark.parametrize("consonant", ["p", "k"])
def test_voiceless_stops_are_silent_then_burst_then_voice(consonant):
    face = saying(consonant + "a")
    closure = piece(face, -0.08, -0.006)
    breath = piece(face, 0.005, VOICE_ONSET - 0.012)
    vowel = piece(face, 0.08, 0.16)
    assert closure.square().mean() < 1e-7
    assert breath.square().mean() > 1e-4
    assert vowel.square().mean() > 3 * breath.square().mean()


@pytest.mark.parametrize("consonant", ["b", "d"])
def test_voiced_stops_hum_behind_the_closure(consonant):
    closure = piece(saying(consonant + "a"), -0.065, -0.015)
    assert closure.square().mean() > 2e-5
    assert power(closure, 60, 500) > 20 * power(closure, 700, 8000)


@pytest.mark.parametrize("consonant", [name for name, one in CONSONANTS.items() if one.noise_seconds])
def test_bursts_begin_with_the_release_to_a_millisecond(consonant):
    face = replace(saying(consonant + "a"))
    mono = sound(face)[0].sum(0)
    rough = mono.diff(n=3).abs()
    release = round(face.utterance.syllables[0].release * RATE)
    before = rough[release - 400 : release - 30].max()
    first = int((rough[release - 60 : release + 200] > 3 * before + 1e-4).nonzero()[0]) - 60
    assert -0.0015 * RATE <= first <= 0.001 * RATE


def test_bursts_differ_by_place():
    lips, tip, back = (piece(saying(c + "a"), -0.001, 0.012) for c in ("b", "d", "k"))
    assert power(tip, 3500, 6000) > 4 * power(lips, 3500, 6000)
    assert power(back, 1100, 2200) > 2 * power(back, 3500, 6000)


def test_s_hisses_high_up_and_has_no_voice():
    hiss = piece(saying("sa"), -0.09, -0.03)
    assert hiss.square().mean() > 1e-4
    assert power(hiss, 4000, 8000) > 30 * power(hiss, 60, 1000)


@pytest.mark.parametrize("consonant", ["m", "n"])
def test_nasals_murmur_low_and_softer_than_the_vowel(consonant):
    face = saying(consonant + "a")
    murmur, vowel = piece(face, -0.06, -0.01), piece(face, 0.08, 0.16)
    assert 0.005 < murmur.square().mean() / vowel.square().mean() < 0.1
    assert power(murmur, 100, 500) > 10 * power(murmur, 600, 8000)


def test_loudness_follows_the_mouth():
    levels = [float(piece(saying("b" + vowel), 0.09, 0.17).square().mean().sqrt()) for vowel in "aei"]
    assert levels[0] > 1.2 * levels[1] > 1.2 * levels[2]


def test_second_formant_comes_from_the_place_of_the_consonant():
    starts = {c: piece(saying(c + "a", pitch=130.0), 0.004, 0.034) for c in ("b", "d")}
    low = {c: power(one, 850, 1250) / power(one, 1450, 2000) for c, one in starts.items()}
    assert low["b"] > 1.5 * low["d"]


@pytest.mark.parametrize("x", [0.3, 0.5, 0.7])
def test_loudness_of_the_ears_tells_the_place(x):
    left, right = sound(saying("ba", x=x))[0].square().sum(-1).sqrt()
    assert float(torch.atan2(right, left)) / (math.pi / 2) == pytest.approx(x, abs=1e-4)


def test_a_voice_does_not_depend_on_its_batch():
    together = speak(FACES[:4], duration=2.0, sample_rate=RATE)
    for number in range(4):
        alone = speak(FACES[number : number + 1], duration=2.0, sample_rate=RATE)
        assert torch.allclose(alone[0], together[number], atol=1e-5)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_other_sample_rates_give_the_same_voice(rate):
    face = saying("ba")
    waveform = sound(face, rate=rate)
    assert waveform.shape == (1, 2, rate)
    assert waveform.isfinite().all()
    reference = piece(face, 0.08, 0.16)
    other = piece(face, 0.08, 0.16, rate=rate)
    assert float(other.square().mean() / reference.square().mean()) == pytest.approx(1, abs=0.25)


def test_upper_formants_are_above_the_third_of_any_vowel():
    assert min(UPPER_FORMANTS) > max(vowel.f3 for vowel in VOWELS.values())
