"""Talking faces as data: timeline, captions, splits, mirror images."""

import math
import random
from itertools import pairwise

import pytest
import torch

from soundstage.data.world.face import (
    FACE_COLOURS,
    HAIR_COLOURS,
    HAIR_STYLES,
    PLACES,
    VOICES,
    describe_face,
    describe_silent_face,
    describe_unseen_face,
    is_held_out,
    sample_face,
)
from soundstage.data.world.face_speech import (
    CONSONANTS,
    LIPS,
    REST_APERTURE,
    SYLLABLES,
    VOWELS,
    Track,
    spoken,
)
from soundstage.data.world.voice import read_tracks

SECONDS = 49 / 24


def face_of(seed, split="train", duration=SECONDS, aspect=1.0):
    return sample_face(random.Random(seed), split=split, duration=duration, aspect=aspect)


FACES = [face_of(seed) for seed in range(200)]


def test_every_value_of_every_attribute_occurs():
    assert {face.colour for face in FACES} == set(FACE_COLOURS)
    assert {face.hair for face in FACES} == set(HAIR_COLOURS)
    assert {face.style for face in FACES} == set(HAIR_STYLES)
    assert {face.place for face in FACES} == set(PLACES)
    assert {face.voice for face in FACES} == set(VOICES)
    assert {len(face.utterance.syllables) for face in FACES} == {1, 2, 3, 4}
    assert {one.text for face in FACES for one in face.utterance.syllables} == set(SYLLABLES)


def test_a_face_never_has_hair_of_its_own_colour():
    assert all(face.hair != face.colour for face in FACES)


@pytest.mark.parametrize("duration", [0.8, SECONDS, 4.0])
def test_all_that_is_said_lies_within_the_clip(duration):
    for seed in range(60):
        face = face_of(seed, duration=duration)
        syllables = face.utterance.syllables
        assert syllables[0].start > 0
        assert syllables[-1].end <= duration
        assert len(face.events_before(duration)) == len(syllables)


def test_syllables_follow_each_other_with_gaps():
    for face in FACES:
        syllables = face.utterance.syllables
        for one in syllables:
            assert one.start < one.release < one.end
        for one, after in pairwise(syllables):
            assert 0.03 < after.start - one.end < 0.1


def test_events_are_where_and_when_the_mouth_opens():
    face = FACES[0]
    for event, one in zip(face.events, face.utterance.syllables, strict=True):
        assert (event.time, event.sound, event.what) == (one.release, one.text, "syllable")
        assert face.aperture(event.time - 0.001) < 0.3
        assert face.aperture(event.time + 0.08) == pytest.approx(one.vowel.aperture, abs=1e-6)


@pytest.mark.parametrize("consonant", list(CONSONANTS))
def test_lips_close_for_labials_only(consonant):
    utterance = spoken([consonant + "a"], start=0.3, pace=[0.22], gaps=[0.05])
    (one,) = utterance.syllables
    closed = utterance.aperture.at(one.release - 0.005)
    assert (closed == 0) == (consonant in LIPS)


def test_apertures_are_in_the_order_of_the_first_formants():
    by_formant = sorted(VOWELS.values(), key=lambda vowel: vowel.f1)
    apertures = [vowel.aperture for vowel in by_formant]
    assert apertures == sorted(apertures)
    assert max(VOWELS[v].spread for v in "ou") < 0.6 < min(VOWELS[v].spread for v in "aei")


def test_between_syllables_the_mouth_is_nearly_closed():
    for face in FACES[:50]:
        for one in face.utterance.syllables:
            assert face.aperture(one.end) == pytest.approx(REST_APERTURE, abs=1e-6)


def test_aperture_never_jumps():
    for face in FACES[:20]:
        values = [face.aperture(number / 1000) for number in range(2100)]
        assert max(abs(a - b) for a, b in pairwise(values)) < 0.05
        assert 0 <= min(values) < max(values) <= 1


def test_tracks_of_every_kind_rise_in_time():
    for face in FACES[:20]:
        said = face.utterance
        tracks = [said.aperture, said.spread, said.tongue, said.voice, said.breath, said.hiss]
        tracks += [said.hiss_pitch, *said.formants, said.nose, said.antiresonance, said.melody]
        for track in tracks:
            assert list(track.times) == sorted(track.times)
            assert all(math.isfinite(value) for value in track.values)


def test_tracks_read_at_once_equal_tracks_read_one_by_one():
    tracks = [FACES[0].utterance.aperture, FACES[1].utterance.voice, Track((0.5,), (2.0,))]
    times = torch.linspace(0, 2, 301)
    together = read_tracks(tracks, times)
    alone = torch.tensor([[track.at(float(time)) for time in times] for track in tracks])
    assert torch.allclose(together, alone, atol=1e-4)


def test_the_splits_share_no_combination():
    seen = {(f.colour, "" if f.style == "bald" else f.hair, f.words[:2]) for f in FACES}
    held = [face_of(seed, "held_out") for seed in range(100)]
    assert all(is_held_out(face) for face in held)
    assert not any(is_held_out(face) for face in FACES)
    assert not seen & {(f.colour, "" if f.style == "bald" else f.hair, f.words[:2]) for f in held}


def test_captions_hold_the_words_and_only_what_is_so():
    wordings = set()
    for number, face in enumerate(FACES):
        caption = describe_face(face, random.Random(number))
        wordings.add(caption.replace(face.words, "*").replace(face.colour, "*"))
        assert f'"{face.words}"' in caption
        assert f"{face.colour} face" in caption
        assert caption == caption.lower()
        assert "{" not in caption
        others = {"left", "right"} - {face.place}
        assert not any(f"on the {place}" in caption for place in others)
        wrong = "deep" if face.voice == "high" else "bright"
        assert wrong not in caption
        if " hair" in caption:
            assert face.style != "bald"
            assert f"{face.hair} hair" in caption
        if "bald" in caption:
            assert face.style == "bald"
    assert len(wordings) > 60


def test_caption_of_a_silent_face_says_nothing_of_the_sound():
    for number, face in enumerate(FACES):
        caption = describe_silent_face(face, random.Random(number))
        assert '"' not in caption
        assert "voice" not in caption
        assert f"{face.colour} face" in caption


def test_caption_of_an_unseen_face_says_nothing_of_its_looks():
    for number, face in enumerate(FACES):
        caption = describe_unseen_face(face, random.Random(number))
        assert f'"{face.words}"' in caption
        assert "face" not in caption
        assert "hair" not in caption


def test_mirror_image_swaps_sides_and_mirrors_back():
    for face in FACES[:30]:
        mirrored = face.mirrored()
        assert mirrored.pan == pytest.approx(1 - face.pan)
        assert {face.place, mirrored.place} in ({"left", "right"}, {"middle"})
        assert mirrored.mirrored().x == pytest.approx(face.x)
        assert mirrored.words == face.words


def test_facts_are_plain_and_complete():
    facts = FACES[0].facts()
    assert facts["words"] == FACES[0].words
    assert [one["text"] for one in facts["syllables"]] == FACES[0].words.split()
    assert facts["syllables"][0]["start"] == FACES[0].utterance.syllables[0].start
