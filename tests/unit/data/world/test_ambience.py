"""Rain, wind, sea and crowd: as strong in picture and sound as their envelope says."""

import random
from dataclasses import replace

import pytest
import torch

from soundstage.data.world.ambience import (
    ELEMENTS,
    LAYERS,
    LEVELS,
    PLACES,
    Ambience,
    is_held_out_ambience,
    sample_ambience,
)
from soundstage.data.world.ambience_caption import (
    LAYER_WORDS,
    PLACE_WORDS,
    SENTENCES,
    SILENT,
    describe_ambience,
    describe_silent_ambience,
)
from soundstage.data.world.ambience_picture import PLACES as DRAWN_PLACES
from soundstage.data.world.ambience_picture import paint_layer, render_ambience
from soundstage.data.world.ambience_sound import sound_ambience
from soundstage.data.world.kind import CLIP_SECONDS
from soundstage.data.world.scene import Scene
from soundstage.data.world.synth import synthesise

RATE = 16_000


def ambience(element, level="heavy", **changes):
    chosen = Ambience(
        element=element,
        level=level,
        place=PLACES[element][0],
        depth=0.6,
        period=2.0,
        phase=0.0,
        blows_right=True,
        seed=5,
        aspect=1.0,
    )
    return replace(chosen, **changes)


def loudness(waveform, step=0.1):
    """Root mean square of both ears in windows of `step` seconds."""
    count = round(step * RATE)
    power = waveform.square().mean(0)
    return power[: len(power) // count * count].reshape(-1, count).mean(1).sqrt()


def correlation(left, right):
    return float(torch.corrcoef(torch.stack((left, right)))[0, 1])


def draw(*ambiences, num_frames=48):
    return render_ambience(ambiences, num_frames=num_frames, height=48, width=48, frame_rate=24)


def test_everything_that_can_be_drawn_has_words():
    assert set(SENTENCES) == set(SILENT) == set(ELEMENTS)
    for table in (SENTENCES, SILENT, LAYER_WORDS):
        assert all(set(words) == set(LEVELS) for words in table.values())
    assert set(LAYER_WORDS) == set(LAYERS)
    assert set(PLACE_WORDS) == set(DRAWN_PLACES) == {place for places in PLACES.values() for place in places}


@pytest.mark.parametrize("element", ELEMENTS)
def test_loudness_follows_the_envelope(element):
    chosen = ambience(element)
    heard = loudness(sound_ambience([chosen], duration=4.0, sample_rate=RATE)[0])
    wanted = torch.tensor([chosen.intensity(0.05 + 0.1 * step) for step in range(len(heard))])
    assert correlation(heard, wanted) > (0.75 if element == "crowd" else 0.95)  # a crowd babbles


@pytest.mark.parametrize("element", ELEMENTS)
def test_levels_differ_in_loudness(element):
    levels = [ambience(element, level, depth=0.0) for level in LEVELS]
    quiet, middle, loud = sound_ambience(levels, duration=2.0, sample_rate=RATE).square().mean((1, 2)).sqrt()
    assert 1.4 * quiet < middle
    assert 1.3 * middle < loud
    assert 0.01 < quiet < loud < 0.25


def test_rain_shows_more_streaks_the_stronger_it_is():
    rain = ambience("rain")
    still = draw(replace(rain, level="light", depth=0.0))[0]
    backdrop = still.amin(1, keepdim=True)  # streaks are brighter than what is behind
    bright = ((draw(rain)[0] - backdrop) > 0.15).any(0).float().mean((1, 2))
    wanted = torch.tensor([rain.intensity(frame / 24) for frame in range(48)])
    assert correlation(bright, wanted) > 0.9


def test_the_sea_reaches_as_far_as_it_is_strong():
    sea = ambience("sea", place="day")
    clip = draw(sea)[0]
    blue = (clip[2] > clip[0] + 0.2)[:, 20:].float().sum((1, 2))  # below the sky
    wanted = torch.tensor([sea.intensity(frame / 24) for frame in range(48)])
    assert correlation(blue, wanted) > 0.9


def test_a_crowd_moves_more_the_louder_it_is():
    calm, loud = (draw(ambience("crowd", level, depth=0.0))[0] for level in ("light", "heavy"))
    assert loud.diff(dim=1).abs().mean() > 1.5 * calm.diff(dim=1).abs().mean()


def test_leaves_fly_with_the_wind():
    """The picture matches itself moved to the side of the wind better than to the other."""
    for blows_right in (True, False):
        wind = ambience("wind", blows_right=blows_right, depth=0.0, is_layer=True)
        clip = torch.zeros(3, 48, 48, 48)
        paint_layer(clip, wind, 24)
        step = round(0.82 * 1.9 * 48 / 24)  # pixels a frame of a middling leaf

        def change(shift, clip=clip):
            return float((clip[:, 1:] - clip[:, :-1].roll(shift, -1)).abs().mean())

        forward = step if blows_right else -step
        assert change(forward) < 0.85 * change(-forward)


def test_travelled_is_the_integral_of_the_intensity():
    wind = ambience("wind", phase=0.3)
    steps = [wind.intensity((step + 0.5) / 1000) / 1000 for step in range(1500)]
    assert wind.travelled(1.5) == pytest.approx(sum(steps), abs=1e-5)
    assert wind.travelled(0.0) == 0.0


def test_the_envelope_is_written_down():
    facts = ambience("rain").facts()
    assert facts["envelope"][3] == pytest.approx(ambience("rain").intensity(0.3), abs=1e-4)
    assert len(facts["envelope"]) == round(CLIP_SECONDS * 10) + 1
    assert facts["direction"] is None
    assert ambience("wind", blows_right=False).facts()["direction"] == "left"


def test_a_layer_is_quieter_than_the_same_alone():
    alone, layer = sound_ambience(
        [ambience("rain"), ambience("rain", is_layer=True)], duration=1.0, sample_rate=RATE
    )
    assert float((alone.square().mean() / layer.square().mean()).log10() * 10) == pytest.approx(10.5, abs=0.2)


def test_blows_stand_out_of_a_layer():
    scene = Scene.from_seed(3, kinds=("bounce",), plain=True)
    wet = replace(scene, layer=ambience("rain", is_layer=True, depth=0.2))
    event = scene.events_before(CLIP_SECONDS)[0]
    sound = synthesise([wet], duration=CLIP_SECONDS, sample_rate=RATE)[0].abs().amax(0)
    start = round(event.time * RATE)
    assert sound[start : start + 80].max() > 2 * sound[start - 800 : start].max()


def test_a_layer_leaves_most_of_the_picture():
    clip = torch.zeros(3, 24, 48, 48)
    paint_layer(clip, ambience("rain", is_layer=True), 24)
    assert 0.01 < (clip > 0.2).float().mean() < 0.15


def test_captions_speak_of_the_element_and_its_level_only():
    rng = random.Random(0)
    for _ in range(300):
        chosen = sample_ambience(rng, split="train", duration=2.0, aspect=1.0)
        for describe, sentences in ((describe_ambience, SENTENCES), (describe_silent_ambience, SILENT)):
            caption = describe(chosen, rng)
            assert any(caption.startswith(words) for words in sentences[chosen.element][chosen.level])
            side = "left" if chosen.blows_right else "right"
            assert f"to the {side}" not in caption
            if chosen.element != "wind":
                assert "left" not in caption
                assert "right" not in caption


def test_silent_crowds_are_not_said_to_talk():
    words = " ".join(word for rows in SILENT["crowd"].values() for word in rows)
    assert not any(word in words for word in ("murmur", "talk", "loud", "quiet", "roar", "cheer"))


def test_some_of_each_element_is_held_out():
    rng = random.Random(1)
    held_out = [sample_ambience(rng, split="held_out", duration=2.0, aspect=1.0) for _ in range(100)]
    assert all(is_held_out_ambience(chosen) for chosen in held_out)
    assert len({chosen.element for chosen in held_out}) >= 2
