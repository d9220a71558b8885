"""Instruments: exact times, sound from the right place at the right pitch, words that are true."""

import math
import random
import re
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from soundstage.data.world.bell import BELL
from soundstage.data.world.clock import CLOCK
from soundstage.data.world.instruments_stage import COUNT_WORDS, SIDE, Stage, swing_times
from soundstage.data.world.kind import CLIP_SECONDS, COLOURS
from soundstage.data.world.pad import PAD
from soundstage.data.world.xylophone import MAKES, NOTES, XYLOPHONE

RATE = 24_000
KINDS = {kind.name: kind for kind in (CLOCK, BELL, PAD, XYLOPHONE)}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def subjects(kind, count=12, *, split="train", aspect=1.0, duration=CLIP_SECONDS):
    rng = random.Random(f"{kind.name}:{split}")
    return [kind.sample(rng, split=split, duration=duration, aspect=aspect) for _ in range(count)]


def pictures(kind, chosen, *, height=32, width=32, num_frames=49, rate=24):
    return kind.render(
        chosen, num_frames=num_frames, height=height, width=width, frame_rate=Fraction(rate), device="cpu"
    )


def sounds(kind, chosen, duration=CLIP_SECONDS):
    return kind.synthesise(chosen, duration=duration, sample_rate=RATE, device="cpu")


@kinds
@pytest.mark.parametrize("aspect", [0.75, 1.0, 16 / 9])
def test_every_event_lies_in_the_picture_and_in_time(kind, aspect):
    for subject in subjects(kind, 60, aspect=aspect):
        events = subject.events_before(CLIP_SECONDS)
        assert events
        assert [event.time for event in events] == sorted(event.time for event in events)
        for event in events:
            assert 0 <= event.time < CLIP_SECONDS
            assert 0 <= event.x <= aspect
            assert 0 <= event.y <= 1


@kinds
def test_pictures_and_sound_have_the_asked_shape_and_range(kind):
    chosen = subjects(kind, 3, aspect=1.5)
    pixels = pictures(kind, chosen, height=32, width=48, num_frames=9)
    assert pixels.shape == (3, 3, 9, 32, 48)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    sound = sounds(kind, chosen, 1.5)
    assert sound.shape == (3, 2, 36_000)
    assert sound.abs().max() <= 0.9


@kinds
def test_a_clip_is_the_same_in_any_batch(kind):
    chosen = subjects(kind, 5)
    alone, together = pictures(kind, chosen[2:3]), pictures(kind, chosen)
    assert torch.allclose(alone[0], together[2], atol=1e-5)  # float32 rounding
    assert torch.allclose(sounds(kind, chosen[2:3])[0], sounds(kind, chosen)[2], atol=1e-4)


@kinds
def test_each_sound_begins_at_its_event(kind):
    """Silence before the first event, and a jump in energy within 2 ms of each."""
    for subject, sound in zip(subjects(kind), sounds(kind, subjects(kind)), strict=True):
        mono = sound.square().sum(0)
        first = subject.events_before(CLIP_SECONDS)[0]
        start = round(first.time * RATE)
        assert not mono[:start].any()
        for event in subject.events_before(CLIP_SECONDS - 0.01):
            at = round(event.time * RATE)
            before, after = mono[max(at - 48, 0) : at], mono[at : at + 48]
            assert after.max() > 1e-3
            assert not len(before) or after.max() > 1.05 * before.max()


@kinds
def test_an_event_to_the_left_is_louder_in_the_left_ear(kind):
    checked = 0
    for subject in subjects(kind, 30):
        event = subject.events_before(CLIP_SECONDS)[0]
        sound = sounds(kind, [subject])[0]
        at = round(event.time * RATE)
        left, right = sound[:, at : at + 120].square().mean(1).sqrt().tolist()
        assert math.atan2(right, left) * 2 / math.pi == pytest.approx(event.x / subject.aspect, abs=0.01)
        checked += 1
    assert checked == 30


@kinds
def test_splits_share_no_combination(kind):
    assert not any(kind.is_held_out(subject) for subject in subjects(kind, 100))
    assert all(kind.is_held_out(subject) for subject in subjects(kind, 30, split="held_out"))


@kinds
def test_mirrored_twice_is_the_same_scene(kind):
    for subject in subjects(kind):
        twice = subject.mirrored().mirrored()
        assert twice.facts() == subject.facts()
        for one, other in zip(
            subject.events_before(CLIP_SECONDS), twice.events_before(CLIP_SECONDS), strict=True
        ):
            assert (one.time, one.x, one.sound) == pytest.approx((other.time, other.x, other.sound))


@pytest.mark.parametrize("kind", [CLOCK, BELL, PAD], ids=["clock", "bell", "pad"])
def test_mirrored_events_are_on_the_other_side_at_the_same_time(kind):
    for subject in subjects(kind, 20, aspect=1.25):
        events = subject.events_before(CLIP_SECONDS)
        for event, other in zip(events, subject.mirrored().events_before(CLIP_SECONDS), strict=True):
            assert other.time == pytest.approx(event.time)
            assert other.x == pytest.approx(1.25 - event.x)


@pytest.mark.parametrize("kind", [BELL, PAD], ids=["bell", "pad"])
def test_mirrored_pictures_are_mirrored(kind):
    chosen = subjects(kind, 4)
    mirrored = pictures(kind, [subject.mirrored() for subject in chosen], num_frames=20)
    plain = pictures(kind, chosen, num_frames=20).flip(-1)
    if kind is BELL:  # the light comes from the left in both
        mirrored, plain = mirrored.mean((1, 2)), plain.mean((1, 2))
        assert (mirrored - plain).abs().mean() < 0.03
    else:  # where halos of neighbours meet, the right one lies on top
        assert (mirrored - plain).abs().mean() < 1e-3


def test_mirrored_xylophone_still_plays_its_notes_with_the_low_ones_on_the_left():
    for subject in subjects(XYLOPHONE):
        mirrored = subject.mirrored()
        assert mirrored.notes == subject.notes
        assert mirrored.bar_x("c") < mirrored.bar_x("a")
        assert mirrored.x == pytest.approx(subject.aspect - subject.x)
        assert XYLOPHONE.describe(mirrored, random.Random(3)) == XYLOPHONE.describe(subject, random.Random(3))


@kinds
def test_a_mirrored_scene_gets_the_mirrored_caption(kind):
    for seed, subject in enumerate(subjects(kind, 40)):
        caption = kind.describe(subject, random.Random(seed))
        other = kind.describe(subject.mirrored(), random.Random(seed))
        if len(getattr(subject, "colours", ("one",))) == 1:
            swapped = caption.replace("on the left", "@").replace("on the right", "on the left")
            assert other == swapped.replace("@", "on the right")


@kinds
def test_captions_are_plain_lower_case_and_true(kind):
    wordings = set()
    for seed, subject in enumerate(subjects(kind, 80)):
        facts = subject.facts()
        for describe in (kind.describe, kind.describe_silent, kind.describe_unseen):
            caption = describe(subject, random.Random(seed))
            wordings.add(re.sub(r"\".*\"", "", caption))
            assert caption == caption.lower().strip()
            assert "  " not in caption
            assert not re.search(r"\ba [aeiou]|\{|\.$", caption.replace('"a ', "").replace("a a", ""))
            side = facts.get("side")
            assert ("on the left" in caption) <= (side == "on the left")
            assert ("on the right" in caption) <= (side == "on the right")
            named = {word for word in COLOURS if re.search(rf"\b{word}\b", caption)}
            settings = {"green"} if "green room" in caption or "pale green" in caption else set()
            true = {facts.get("colour"), facts.get("mallet"), *facts.get("colours", ())}
            assert named <= true | settings
            if describe is kind.describe_unseen:
                assert not named - settings
    assert len(wordings) > 80


@kinds
def test_unseen_scenes_show_only_the_background(kind):
    chosen = subjects(kind, 3)
    empty = kind.render_unseen(
        chosen, num_frames=5, height=32, width=32, frame_rate=Fraction(24), device="cpu"
    )
    assert empty.shape == (3, 3, 5, 32, 32)
    assert torch.equal(empty[:, :, 0], empty[:, :, 4])
    assert (pictures(kind, chosen, num_frames=5) - empty).abs().amax((1, 2, 3, 4)).min() > 0.3


def test_swing_times_cover_the_clip_from_any_phase():
    assert swing_times(-0.5, 0.4, 1.2) == pytest.approx([0.3, 0.7, 1.1])
    assert swing_times(0.25, 0.25, 1.0) == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert swing_times(2.0, 1.5, 1.0) == pytest.approx([0.5])


def test_one_says_left_and_right_only_off_the_middle():
    stage = Stage(background="sky", aspect=2.0, tint=(0.0, 0.0, 0.0), texture=0.0, flipped=False)
    assert stage.side(2 * (0.5 - SIDE) - 0.01) == "on the left"
    assert stage.side(1.0) == ""
    assert stage.side(2 * (0.5 + SIDE) + 0.01) == "on the right"


@pytest.mark.parametrize("kind", [CLOCK, BELL], ids=["clock", "bell"])
def test_swings_turn_round_at_their_events(kind):
    for subject in subjects(kind):
        for event in subject.events_before(CLIP_SECONDS):
            side = 1 if event.x > subject.x else -1
            assert subject.angle(event.time) == pytest.approx(side * subject.swing)


def test_tick_and_tock_take_turns_and_differ_in_pitch():
    for subject in subjects(CLOCK):
        names = [event.sound for event in subject.events_before(CLIP_SECONDS)]
        assert all(one != other for one, other in pairwise(names))
        assert all((e.sound == "tick") == (e.x > subject.x) for e in subject.events_before(CLIP_SECONDS))


def test_the_clapper_meets_the_side_at_each_stroke():
    for subject in subjects(BELL):
        for event in subject.events_before(CLIP_SECONDS):
            side = 1 if subject.angle(event.time) > 0 else -1
            assert subject.clapper(event.time - 1e-6) == pytest.approx(side, abs=1e-3)
            assert abs(subject.clapper(event.time - subject.interval / 2)) < 0.9
            assert subject.shine(event.time + 1e-9) == pytest.approx(1.0, abs=1e-3)


def test_the_caption_counts_the_hits_of_a_pad():
    counted = 0
    for seed, subject in enumerate(subjects(PAD, 60)):
        caption = PAD.describe(subject, random.Random(seed))
        assert len(subject.events_before(CLIP_SECONDS)) == sum(subject.counts)
        if len(subject.colours) == 1:
            words = [word for word in COUNT_WORDS if re.search(rf"\b{word}\b", caption)]
            assert words in ([], [COUNT_WORDS[len(subject.hits)]])
            counted += bool(words)
        else:
            for colour, count in zip(subject.colours, subject.counts, strict=True):
                said = re.search(rf"\b{colour} (once|twice|\w+ times)", caption)
                assert said is None or said[1] == COUNT_WORDS[count]
    assert counted > 5


def test_a_pad_is_brightest_in_the_first_frame_after_a_hit():
    for subject in subjects(PAD, 6):
        pixels = pictures(PAD, [subject])[0].mean(0)
        for time, pad in subject.hits:
            column, row = int(subject.pad_x(pad) * 32), 17
            first = math.ceil(time * 24)
            assert pixels[first, row, column] > pixels[first - 1, row, column] + 0.1
            if first + 1 < 49 and not any(time < at < (first + 1) / 24 for at, _ in subject.hits):
                assert pixels[first, row, column] > pixels[first + 1, row, column]


def test_the_caption_names_the_notes_of_a_xylophone():
    for seed, subject in enumerate(subjects(XYLOPHONE, 40)):
        for describe in (XYLOPHONE.describe, XYLOPHONE.describe_silent, XYLOPHONE.describe_unseen):
            caption = describe(subject, random.Random(seed))
            assert re.search(r'"([a-g ]+)"', caption)[1].split() == list(subject.notes)
        assert [event.sound for event in subject.events_before(CLIP_SECONDS)] == list(subject.notes)


def test_the_mallet_touches_each_bar_at_its_time():
    for subject in subjects(XYLOPHONE):
        for event in subject.events_before(CLIP_SECONDS):
            assert subject.mallet_place(event.time) == pytest.approx((event.x, event.y), abs=1e-6)
            assert subject.mallet_place(event.time - 0.05)[1] < event.y - 0.05
            assert subject.mallet_place(event.time + 0.05)[1] < event.y - 0.05


def test_notes_sound_at_their_pitch():
    """The strongest partial lies within a cent of equal temperament."""
    for subject in subjects(XYLOPHONE, 8):
        event = subject.events_before(CLIP_SECONDS)[-1]
        heard = sounds(XYLOPHONE, [subject])[0].sum(0)[round(event.time * RATE) + 480 :][: round(0.25 * RATE)]
        spectrum = torch.fft.rfft(heard * torch.hann_window(len(heard)), 32 * RATE).abs()
        low, high = (
            round(32 * hertz) for hertz in (500 * MAKES[subject.make].pitch, 900 * MAKES[subject.make].pitch)
        )
        peak = (low + int(spectrum[low:high].argmax())) / 32
        true = NOTES[event.sound] * MAKES[subject.make].pitch
        if event.sound != subject.notes[-2]:  # else the older tone interferes, and moves the peak
            assert abs(1200 * math.log2(peak / true)) < 6


def test_short_clips_have_at_least_one_event_where_they_can():
    for subject in subjects(XYLOPHONE, 5, duration=0.6):
        assert len(subject.events_before(0.6)) == 1
    for subject in subjects(PAD, 5, duration=0.8):
        assert subject.events_before(0.8)
