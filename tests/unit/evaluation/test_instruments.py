"""Detectors for instruments, on clips whose truth is known: as rendered, shifted, and from a blurred file."""

import functools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from soundstage.core.rng import generator
from soundstage.data.world.kind import CLIP_SECONDS
from soundstage.data.world.kinds import KINDS
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation.detectors.notes import find_notes
from soundstage.evaluation.detectors.notes_bars import find_struck_bars
from soundstage.evaluation.detectors.onsets import find_onsets
from soundstage.evaluation.detectors.strikes import find_bell_strikes, find_pad_hits
from soundstage.evaluation.detectors.strikes_glow import find_blows
from soundstage.evaluation.detectors.ticks import find_turns
from soundstage.evaluation.observation import observe
from soundstage.media.mux import write_clip

CONFIG = WorldConfig()
FRAME = 1 / 24
NUM_CLIPS, NUM_CODED = 12, 4  # a file takes long to write and read
EDGE = 0.17  # s at either end of a clip in which a picture need not show what happens
NEAR = 0.06  # s

DETECTORS = {
    "clock": find_turns,
    "bell": find_bell_strikes,
    "pad": find_pad_hits,
    "xylophone": find_struck_bars,
}
kinds = pytest.mark.parametrize("kind", DETECTORS)


@functools.cache
def rendered(kind, split="held_out"):
    """Subjects of a kind, their pictures and their sounds."""
    rng = random.Random(f"detectors:{kind}")
    of = KINDS[kind]
    subjects = [of.sample(rng, split=split, duration=CLIP_SECONDS, aspect=1.0) for _ in range(NUM_CLIPS)]
    pixels = of.render(
        subjects, num_frames=49, height=64, width=64, frame_rate=CONFIG.frame_rate, device="cpu"
    )
    sounds = of.synthesise(subjects, duration=CONFIG.duration, sample_rate=CONFIG.sample_rate, device="cpu")
    return subjects, pixels, sounds


@functools.cache
def coded(kind, folder):
    """What is observed of the clips after blur, noise and a lossy file."""
    _, pixels, sounds = rendered(kind)
    weights = torch.tensor([0.25, 0.5, 0.25])
    seen = []
    for index, (clip, sound) in enumerate(zip(pixels[:NUM_CODED], sounds, strict=False)):
        frames = F.pad(clip, (1, 1, 1, 1), mode="replicate").transpose(0, 1).reshape(-1, 1, 66, 66)
        soft = F.conv2d(frames, torch.outer(weights, weights)[None, None]).view(49, 3, 64, 64).transpose(0, 1)
        noise = torch.randn(soft.shape, generator=generator(index, "noise"))
        path = folder / f"{kind}{index}.mp4"
        write_clip(
            path,
            (soft + 0.02 * noise).clamp(-1, 1),
            sound + 1e-3 * torch.randn(sound.shape, generator=generator(index, "hiss")),
            frame_rate=CONFIG.frame_rate,
            sample_rate=CONFIG.sample_rate,
            metadata={},
        )
        seen.append(observe(path))
        path.unlink()
    return seen


@pytest.fixture(scope="session")
def clips(as_observation, tmp_path_factory):
    """Give `clips(kind, coded)`: pairs of subject and observation."""
    folder = tmp_path_factory.mktemp("instruments")
    plain = functools.cache(
        lambda kind: [as_observation(*clip) for clip in zip(*rendered(kind)[1:], strict=True)]
    )

    def of(kind, through_file=False):
        seen = coded(kind, folder) if through_file else plain(kind)
        return list(zip(rendered(kind)[0], seen, strict=False))

    return of


def events_of(subject):
    return [event for event in subject.events_before(CLIP_SECONDS - EDGE) if event.time > EDGE]


def compare(pairs, detector):
    """Differences in s of the events that are found, the shares that are missed and imagined, and pairs."""
    errors, wanted, imagined, found, matched = [], 0, 0, 0, []
    for subject, seen in pairs:
        detected = [one for one in seen.find(detector) if getattr(one, "is_clear", True)]
        times = [event.time for event in subject.events_before(CLIP_SECONDS + 1)]
        found += len(detected)
        imagined += sum(min(abs(one.time - time) for time in times) > NEAR for one in detected)
        for event in events_of(subject):
            wanted += 1
            nearest = min(detected, key=lambda one: abs(one.time - event.time), default=None)
            if nearest is not None and abs(nearest.time - event.time) <= NEAR:
                errors.append(nearest.time - event.time)
                matched.append((subject, event, nearest))
    return np.array(errors), 1 - len(errors) / wanted, imagined / max(found, 1), matched


def is_named_right(subject, event, one):
    if hasattr(one, "side"):
        return one.side == ("right" if event.sound == "tick" else "left")
    if hasattr(one, "name"):
        return one.name == event.sound
    return one.colour == getattr(subject, "colour", event.sound)


@kinds
@pytest.mark.parametrize("through_file", [False, True], ids=["rendered", "coded"])
def test_events_are_seen_within_half_a_frame(clips, kind, through_file):
    errors, missed, imagined, matched = compare(clips(kind, through_file), DETECTORS[kind])
    assert missed <= 0.02
    assert imagined <= 0.02
    assert np.abs(errors).mean() < FRAME / 4
    assert (np.abs(errors) < FRAME / 2).mean() >= 0.98
    assert np.mean([is_named_right(*match) for match in matched]) >= 0.98


@kinds
@pytest.mark.parametrize("through_file", [False, True], ids=["rendered", "coded"])
def test_events_are_heard_within_three_milliseconds(clips, kind, through_file):
    errors, missed, imagined, _ = compare(clips(kind, through_file), find_onsets)
    assert missed == 0
    assert imagined <= 0.02
    assert np.abs(errors).max() < 0.003


@kinds
@pytest.mark.parametrize("shift", [-2, 3])
def test_shifted_pictures_have_shifted_events(clips, as_observation, kind, shift):
    """Whole frames, so that nothing but the times may change."""
    detector = DETECTORS[kind]
    delays = []
    for (_, seen), pixels in zip(clips(kind)[:4], rendered(kind)[1], strict=False):
        frames = (torch.arange(49) - shift).clamp(0, 48)
        late = as_observation(pixels[:, frames], None).find(detector)
        for one in seen.find(detector):
            if 0.3 < one.time < CLIP_SECONDS - 0.3 and late:
                nearest = min((other.time for other in late), key=lambda t: abs(t - one.time - shift * FRAME))
                delays.append(nearest - one.time)
    assert len(delays) >= 4
    assert np.median(delays) == pytest.approx(shift * FRAME, abs=0.004)


@pytest.mark.parametrize("through_file", [False, True], ids=["rendered", "coded"])
def test_notes_are_named_and_in_tune(clips, through_file):
    for subject, seen in clips("xylophone", through_file):
        notes = seen.find(find_notes)
        assert [note.name for note in notes] == list(subject.notes)
        assert max(abs(note.cents) for note in notes) < 5
        for note, pitch in zip(notes, subject.facts()["pitches"], strict=True):
            assert note.hertz == pytest.approx(pitch, rel=0.003)


def test_a_sharp_xylophone_is_heard_as_sharp(clips, as_observation):
    """The same samples at a higher rate: all pitches rise by 40 cents, all times shrink."""
    (subject, _), (_, pixels, sounds) = clips("xylophone")[0], rendered("xylophone")
    factor = 2 ** (40 / 1200)
    places = torch.arange(int(sounds.shape[2] / factor)) * factor
    low = places.long().clamp(max=sounds.shape[2] - 2)
    fast = torch.lerp(sounds[0][:, low], sounds[0][:, low + 1], (places - low).float())
    notes = as_observation(pixels[0], fast).find(find_notes)
    assert [note.name for note in notes] == list(subject.notes)
    assert [note.cents for note in notes] == pytest.approx([40] * len(notes), abs=3)


@kinds
def test_nothing_is_seen_where_nothing_moves(as_observation, kind):
    still = rendered(kind)[1][0][:, :1].expand(-1, 49, -1, -1)
    assert as_observation(still, None).find(DETECTORS[kind]) == ()


def test_silence_has_no_notes(as_observation):
    assert as_observation(torch.zeros(3, 49, 16, 16), torch.zeros(2, 49_000)).find(find_notes) == ()


def test_a_glow_tells_its_blow_between_frames():
    """One blow at each phase between two frames, the strength of a fresh glow not known but constant."""
    times = np.arange(49) / 24
    struck = [0.26, 0.512, 0.77, 1.03, 1.28, 1.551]
    glow = np.zeros(49)
    for time in struck:
        glow = np.where(times >= time, 0.8 * np.exp(-(times - time) / 0.15), glow)
    blows = find_blows(40 + 60 * glow, times, fade=0.15, least=5.0)
    assert [blow.time for blow in blows] == pytest.approx(struck, abs=0.006)
    known = find_blows(glow, times, fade=0.15, least=0.1, fresh=0.8)
    assert [blow.time for blow in known] == pytest.approx(struck, abs=0.001)
