import numpy as np
import pytest
import torch

from soundstage.core.rng import generator
from soundstage.data.world.bounce import FLOORS, Bounce
from soundstage.data.world.bounce_sound import sound_bounces
from soundstage.data.world.kind import CLIP_SECONDS
from soundstage.data.world.sample import WorldConfig
from soundstage.evaluation.detectors.onsets import find_onsets

RATE = WorldConfig().sample_rate
SECONDS = 49 / 24


@pytest.fixture
def hear(as_observation):
    def of(waveform):
        clip = as_observation(torch.zeros(3, 49, 8, 8), waveform)
        return clip.find(find_onsets)

    return of


def noise(level, name="noise"):
    return level * torch.randn(2, round(SECONDS * RATE), generator=generator(0, name))


def tone(start, decay, frequency=900.0, level=0.4, attack=0.0):
    time = torch.arange(round(SECONDS * RATE)) / RATE - start
    shape = torch.exp(-time.clamp_min(0) / decay) * (time >= 0)
    if attack:
        shape = shape * (time / attack).clamp(0, 1)
    return (level * shape * torch.sin(2 * torch.pi * frequency * time)).expand(2, -1)


def scenes_with(floor, count=3):
    return [s for seed in range(200) if (s := Bounce.from_seed(seed)).floor == floor][:count]


@pytest.mark.parametrize("floor", FLOORS)
def test_every_blow_of_the_world_is_heard_to_a_millisecond(hear, floor):
    scenes = scenes_with(floor)
    for scene, waveform in zip(
        scenes, sound_bounces(scenes, duration=SECONDS, sample_rate=RATE), strict=True
    ):
        onsets = hear(waveform)
        for event in scene.events_before(SECONDS - 0.1):
            if event.strength > 0.5:
                assert min(abs(onset.time - event.time) for onset in onsets) < 0.0025
        clear = [onset.time for onset in onsets if onset.is_clear]
        for time in clear:
            assert min(abs(event.time - time) for event in scene.events) < 0.005


def test_blow_on_top_of_a_ringing_tail_is_heard(hear):
    """The second is weaker than what is left of the first; only its spectrum tells."""
    ring = tone(0.5, decay=0.5, frequency=800)
    second = tone(0.7, decay=0.05, frequency=3000, level=0.15)
    times = [onset.time for onset in hear(ring + second + noise(1e-3))]
    assert len(times) == 2
    assert times == pytest.approx([0.5, 0.7], abs=0.003)


def test_noise_alone_has_no_onset(hear):
    assert hear(noise(1e-3)) == ()
    assert hear(noise(0.1)) == ()


def test_silence_has_no_onset(hear):
    assert hear(torch.zeros(2, round(SECONDS * RATE))) == ()


def test_loud_background_hides_only_faint_blows(hear):
    onsets = hear(tone(0.9, decay=0.1) + noise(0.01))
    assert [onset.is_clear for onset in onsets] == [True]
    assert onsets[0].time == pytest.approx(0.9, abs=0.003)


def test_slow_attack_is_placed_within_its_rise(hear):
    """A generated sound may begin softly over 20 ms."""
    onsets = hear(tone(0.9, decay=0.15, attack=0.02) + noise(1e-3))
    assert len(onsets) == 1
    assert 0.895 < onsets[0].time < 0.92


def test_faint_beside_loud_is_heard_but_not_clear(hear):
    onsets = hear(tone(0.4, decay=0.05, level=0.5) + tone(1.2, decay=0.05, level=0.05) + noise(1e-3))
    assert [onset.is_clear for onset in onsets] == [True, False]
    assert onsets[1].level == pytest.approx(-20, abs=3)


def test_decay_and_end_of_a_sound_are_no_onsets(hear):
    cut = tone(0.4, decay=0.6).clone()
    cut[:, round(1.2 * RATE) :] = 0
    assert len([onset for onset in hear(cut + noise(1e-3)) if onset.is_clear]) == 1


def test_delayed_sound_has_delayed_onsets(hear):
    (scene,) = scenes_with("wood", 1)
    waveform = sound_bounces([scene], duration=SECONDS, sample_rate=RATE)[0]
    count = round(0.04 * RATE)
    late = torch.cat((noise(1e-3)[:, :count], waveform[:, :-count]), 1)
    before = [onset.time for onset in hear(waveform) if onset.time < CLIP_SECONDS - 0.2]
    after = [onset.time for onset in hear(late)][: len(before)]
    assert np.array(after) - np.array(before) == pytest.approx(0.04, abs=0.002)


def test_compressed_sound_keeps_its_times(world_file):
    _, scene, clip = world_file
    onsets = clip.find(find_onsets)
    for event in scene.events_before(SECONDS - 0.1):
        assert min(abs(onset.time - event.time) for onset in onsets) < 0.0025
