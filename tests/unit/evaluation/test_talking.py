"""Mouths, voices and syllables of the world's own faces, as they are and spoilt: how far detectors err."""

import functools
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from soundstage.core.rng import generator
from soundstage.data.world.face import describe_face, sample_face
from soundstage.data.world.face_drawing import MOUTH_Y, render_faces
from soundstage.data.world.face_speech import spoken
from soundstage.data.world.voice import speak
from soundstage.evaluation.detectors.mouth import find_face_colour, find_face_place, find_mouth
from soundstage.evaluation.detectors.speech import find_lip_sync, find_loudness, find_pitch, find_voice
from soundstage.evaluation.detectors.speech_syllables import find_syllables, matched_syllables
from soundstage.evaluation.expectation import expected_of
from soundstage.evaluation.metrics.talking import METRICS
from soundstage.evaluation.observation import observe
from soundstage.media.mux import write_clip

RATE, SECONDS, NUM_FACES = 24_000, 49 / 24, 16
FACES = [
    sample_face(random.Random(f"heard {seed}"), split="held_out", duration=SECONDS, aspect=1.0)
    for seed in range(NUM_FACES)
]


@functools.cache
def pictures():
    return render_faces(FACES, num_frames=49, height=64, width=64, frame_rate=24)


@functools.cache
def sounds():
    """Half a second more than the pictures, for shifts."""
    return speak(FACES, duration=SECONDS + 0.5, sample_rate=RATE)


def blurred(pixels):
    """Two 3 x 3 means: about what a small video codec leaves."""
    for _ in range(2):
        pixels = F.avg_pool3d(pixels, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    return pixels


def noisy(waveform):
    return waveform + 4e-3 * torch.randn(waveform.shape, generator=generator(0, "hiss"))


@pytest.fixture
def clips(as_observation):
    """Give `clips(pixels, waveforms)`: observations of all faces."""
    count = round(SECONDS * RATE)

    def of(pixels, waveforms):
        return [as_observation(one, other[:, :count]) for one, other in zip(pixels, waveforms, strict=True)]

    return of


@pytest.fixture(scope="module")
def clean(as_observation):
    """Observations of all faces as they are; detectors run once."""
    count = round(SECONDS * RATE)
    return [as_observation(one, other[:, :count]) for one, other in zip(pictures(), sounds(), strict=True)]


def syllables_right(seen):
    pairs = [
        ([one.text for one in clip.find(find_syllables)], face.words.split())
        for clip, face in zip(seen, FACES, strict=True)
    ]
    right = sum(matched_syllables(heard, wanted) for heard, wanted in pairs)
    return right / sum(max(len(heard), len(wanted)) for heard, wanted in pairs)


def test_mouths_are_found_where_they_are(clean):
    for face, clip in zip(FACES, clean, strict=True):
        mouth = clip.find(find_mouth)
        assert mouth.x == pytest.approx(face.x, abs=0.012)  # less than a pixel
        assert mouth.y == pytest.approx(face.y + MOUTH_Y * face.scale + 0.015, abs=0.03)


@pytest.mark.parametrize("spoil", [lambda pixels: pixels, blurred], ids=["sharp", "blurred"])
def test_openings_follow_the_true_aperture(clips, spoil):
    correlations = []
    for face, clip in zip(FACES, clips(spoil(pictures()), sounds()), strict=True):
        true = [face.aperture(frame / 24) for frame in range(49)]
        correlations.append(np.corrcoef(true, clip.find(find_mouth).openings)[0, 1])
    assert np.mean(correlations) > 0.98
    assert min(correlations) > 0.85


def test_lips_and_voice_of_the_world_go_together(clean):
    """The detector's own error: 6 ms on average."""
    found = [clip.find(find_lip_sync) for clip in clean]
    lags = np.array([one.lag for one in found])
    assert abs(lags.mean()) < 0.004
    assert np.abs(lags).mean() < 0.010
    assert np.mean([one.correlation for one in found]) > 0.95
    assert min(one.correlation for one in found) > 0.85


def test_lips_and_voice_of_a_blurred_and_noisy_clip_go_together(clips):
    found = [clip.find(find_lip_sync) for clip in clips(blurred(pictures()), noisy(sounds()))]
    assert np.abs([one.lag for one in found]).mean() < 0.012
    assert np.mean([one.correlation for one in found]) > 0.93


@pytest.mark.parametrize("shift", [-0.12, -0.04, 0.08])
def test_a_shifted_voice_is_found_shifted(clips, clean, shift):
    count = round(abs(shift) * RATE)
    late = F.pad(sounds(), (count, 0)) if shift > 0 else sounds()[..., count:]
    moved = clips(pictures(), late)
    errors = [
        after.find(find_lip_sync).lag - before.find(find_lip_sync).lag - shift
        for before, after in zip(clean, moved, strict=True)
    ]
    assert np.mean(np.abs(errors)) < 0.004


def test_still_mouth_or_silence_is_no_lip_sync(as_observation):
    still = pictures()[0][:, :1].expand(-1, 49, -1, -1)
    assert as_observation(still, sounds()[0]).find(find_lip_sync) is None
    assert as_observation(pictures()[0], None).find(find_lip_sync) is None


def test_another_voice_goes_less_well_with_the_mouth(clips):
    """Dubbed by the next face: the correlation tells."""
    dubbed = clips(pictures(), sounds().roll(1, 0))
    in_place = [clip.find(find_lip_sync).correlation_in_place for clip in dubbed]
    assert np.mean(in_place) < 0.6


def test_syllables_of_held_out_faces_are_heard(clean):
    assert syllables_right(clean) >= 0.97


def test_syllables_are_heard_in_noise(clips):
    assert syllables_right(clips(pictures(), noisy(sounds()))) >= 0.95


def test_releases_are_heard_in_time(clean):
    errors = [
        heard.time - true.release
        for face, clip in zip(FACES, clean, strict=True)
        for heard, true in zip(clip.find(find_syllables), face.utterance.syllables, strict=False)
        if heard.text == true.text
    ]
    assert abs(np.mean(errors)) < 0.003
    assert np.std(errors) < 0.006


def test_other_words_are_not_heard_as_wanted(clean):
    right = [
        matched_syllables([one.text for one in clip.find(find_syllables)], other.words.split())
        / len(other.words.split())
        for clip, other in zip(clean, [*FACES[1:], FACES[0]], strict=True)
    ]
    assert np.mean(right) < 0.15


def test_silence_says_nothing(as_observation):
    clip = as_observation(pictures()[0], torch.zeros(2, round(SECONDS * RATE)))
    assert clip.find(find_syllables) == ()
    assert clip.find(find_voice) is None


@pytest.mark.parametrize(
    ("heard", "wanted", "right"),
    [
        ("ba mi lo", "ba mi lo", 3),
        ("ba lo", "ba mi lo", 2),
        ("mi ba lo", "ba mi lo", 2),
        ("ba ba mi lo", "ba mi lo", 3),
        ("su", "ba mi lo", 0),
        ("", "ba", 0),
    ],
)
def test_matched_syllables_keep_their_order(heard, wanted, right):
    assert matched_syllables(heard.split(), wanted.split()) == right


def test_pitch_and_voice_are_those_of_the_face(clean):
    for face, clip in zip(FACES, clean, strict=True):
        assert clip.find(find_pitch) == pytest.approx(face.pitch, rel=0.07)  # the melody falls by as much
        assert clip.find(find_voice) == face.voice


def test_colour_and_place_of_the_face_are_seen(clean, clips):
    for seen in (clean, clips(blurred(pictures()), sounds())):
        assert [clip.find(find_face_colour) for clip in seen] == [face.colour for face in FACES]
        assert [clip.find(find_face_place) for clip in seen] == [face.place for face in FACES]


def test_captions_are_read_back():
    named = set()
    for number, face in enumerate(FACES * 3):
        expected = expected_of(describe_face(face, random.Random(number)))
        assert expected["kind"] == "face"
        assert expected["words"] == face.words
        assert expected["colour"] == face.colour
        for name in ("voice", "place", "hair"):
            if name in expected:
                named.add(name)
                assert expected[name] == getattr(face, name)
        assert "size" not in expected
    assert named == {"voice", "place", "hair"}


def test_metrics_of_a_true_clip_are_near_their_best(clean):
    for face, clip in list(zip(FACES, clean, strict=True))[:6]:
        expected = expected_of(describe_face(face, random.Random(5)))
        rows = {name: metric.rows(clip, expected) for name, metric in METRICS.items()}
        assert all(abs(lag) < 41.7 for (lag,) in rows["lip_lag"])
        assert rows["lip_correlation"][0][0] > 0.85
        right, said = rows["syllables"][0]
        assert right == said == len(face.utterance.syllables)
        assert all(value == 1 for name in ("voice", "face_colour", "face_place") for (value,) in rows[name])


def test_metrics_say_nothing_about_other_scenes(clean):
    expected = expected_of("a red ball bounces on a wooden floor")
    assert not any(metric.rows(clean[0], expected) for metric in METRICS.values())


def test_a_compressed_clip_is_measured_like_the_original(tmp_path):
    said = spoken(["ba", "mi", "lo"], start=0.2, pace=[0.23] * 3, gaps=[0.06] * 3)
    face = replace(FACES[0], utterance=said)
    pixels = render_faces([face], num_frames=49, height=64, width=64, frame_rate=24)[0]
    waveform = speak([face], duration=SECONDS, sample_rate=RATE)[0]
    path = tmp_path / "face.mp4"
    write_clip(path, pixels, waveform, frame_rate=Fraction(24), sample_rate=RATE, metadata={})
    clip = observe(path)
    assert [one.text for one in clip.find(find_syllables)] == ["ba", "mi", "lo"]
    assert abs(clip.find(find_lip_sync).lag) < 0.015
    assert clip.find(find_lip_sync).correlation > 0.9


def test_loudness_rises_with_the_first_syllable(clean):
    for face, clip in zip(FACES, clean, strict=True):
        loudness = clip.find(find_loudness)
        first = face.utterance.syllables[0]
        if first.text[0] in "pkbd":
            before = loudness[: int((first.start - 0.02) * 200)]
            assert before.numel() == 0 or before.max() < 0.02 * loudness.max()
            assert loudness[int(first.release * 200) :].max() == loudness.max()
