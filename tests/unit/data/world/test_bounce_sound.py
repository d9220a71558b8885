"""Sound: on time and in place; timbre tells the floor, pitch the size, loudness the speed."""

import math
from dataclasses import replace

import pytest
import torch

from soundstage.data.world.bounce import FLOORS, SIZES, Bounce
from soundstage.data.world.bounce_sound import SIZE_PITCH, TIMBRES, sound_bounces
from soundstage.data.world.limiter import PEAK, limit

RATE = 24_000
SCENES = [Bounce.from_seed(seed) for seed in range(24)]


def sound(scenes, duration=2.0, sample_rate=RATE):
    return sound_bounces(scenes, duration=duration, sample_rate=sample_rate)


def blow(floor="wood", size="medium", x=0.5, speed=1.5, time=0.25):
    """A scene with one impact and then silence."""
    scene = SCENES[0]
    motion = replace(
        scene.motion,
        first_impact=time,
        first_speed=speed,
        restitution=0.01,
        velocity_x=0.0,
        start_x=x,
        reach=(0.1, 0.9),
    )
    return replace(scene, floor=floor, size=size, motion=motion, detune=1.0)


def spectrum(scene, start=0.25, seconds=0.3):
    """Magnitudes over frequency from just after an impact, both channels together."""
    first = round(start * RATE)
    heard = sound([scene], 0.8)[0].sum(0)[first : first + round(seconds * RATE)]
    return torch.fft.rfft(heard * torch.hann_window(2 * len(heard))[len(heard) :], RATE).abs()


def centroid(scene):
    magnitude = spectrum(scene)
    return float((magnitude * torch.arange(len(magnitude))).sum() / magnitude.sum())


def test_the_waveform_is_stereo_of_the_asked_length():
    waveform = sound(SCENES[:3], duration=1.5)
    assert waveform.shape == (3, 2, 36_000)
    assert waveform.dtype == torch.float32


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("time", [0.1, 0.25001, 0.4567])
def test_the_sound_begins_with_the_impact(floor, time):
    scene = blow(floor, time=time)
    mono = sound([scene], 0.7)[0].abs().amax(0)
    onset = int((mono > 0.01).nonzero()[0])
    assert -1 <= onset - time * RATE <= 0.002 * RATE


def test_each_event_of_a_scene_is_heard_at_its_time():
    for scene in SCENES:
        waveform = sound([scene], 2.5)[0]
        for event in scene.events_before(2.4):
            sample = round(event.time * RATE)
            roughness = waveform.diff(n=2).abs().amax(0)  # ringing is smooth, a contact is not
            before = roughness[max(sample - 240, 0) : sample - 4].max() if sample > 8 else 0.0
            assert roughness[sample - 3 : sample + 48].max() > 1.1 * before


def test_nothing_is_heard_before_the_first_impact():
    for scene in SCENES[:10]:
        assert not sound([scene])[0, :, : round(scene.events[0].time * RATE) - 1].any()


@pytest.mark.parametrize("x", [0.15, 0.35, 0.5, 0.8])
def test_loudness_of_the_ears_tells_the_place(x):
    left, right = sound([blow(x=x)])[0, :, 6000:8000].square().sum(-1).sqrt()
    assert float(torch.atan2(right, left)) / (math.pi / 2) == pytest.approx(x, abs=0.01)


def test_panning_keeps_the_power():
    power = [float(sound([blow(x=x)])[0, :, 6000:8000].square().sum()) for x in (0.15, 0.5, 0.85)]
    assert max(power) / min(power) < 1.05


@pytest.mark.parametrize("floor", FLOORS)
def test_the_smaller_the_object_the_higher_the_pitch(floor):
    peaks = [int(spectrum(blow(floor, size)).argmax()) for size in SIZES]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > 1.25 * peaks[1] > 1.25 * 1.25 * peaks[2]
    assert list(SIZE_PITCH) == list(SIZES)


@pytest.mark.parametrize("floor", ["wood", "metal", "glass"])
def test_the_loudest_mode_has_its_frequency(floor):
    loudest = int(spectrum(blow(floor)).argmax())
    assert min(abs(loudest - frequency) for frequency, _, _ in TIMBRES[floor].modes) < 4


def test_a_harder_impact_is_louder():
    levels = [float(sound([blow(speed=speed)])[0].abs().max()) for speed in (0.5, 1.0, 2.0)]
    assert levels[1] / levels[0] == pytest.approx(2.0, rel=0.15)
    assert levels[2] / levels[1] == pytest.approx(2.0, rel=0.15)


def test_materials_differ_in_brightness():
    centroids = {floor: centroid(blow(floor)) for floor in FLOORS}
    assert centroids["drum"] < 0.7 * centroids["wood"]
    assert centroids["wood"] < 0.7 * centroids["metal"]
    assert centroids["metal"] < 0.8 * centroids["glass"]


def test_metal_rings_longest_and_wood_shortest():
    def decay(floor):
        """Seconds until the sound has lost 20 dB."""
        mono = sound([blow(floor)], 1.5)[0].sum(0)[6000:].square()
        envelope = mono.unfold(0, 480, 240).mean(-1)
        return int((envelope > envelope[0] / 100).nonzero().max()) * 0.01

    seconds = {floor: decay(floor) for floor in FLOORS}
    assert seconds["metal"] > 2 * seconds["glass"]
    assert seconds["metal"] > 1.3 * seconds["drum"]
    assert min(seconds, key=seconds.get) == "wood"


def test_a_drum_falls_in_pitch():
    scene = blow("drum")
    mono = sound([scene], 1.0)[0].sum(0)[6000:]
    smooth = mono.unfold(0, 25, 1).mean(-1)  # without the noise of the contact
    crossings = ((smooth[:-1] < 0) & (smooth[1:] >= 0)).nonzero().flatten()
    early, late = int(crossings[2] - crossings[1]), int(crossings[9] - crossings[8])
    assert early < late


def test_nothing_clips_even_when_impacts_pile_up():
    assert float(sound(SCENES, 2.5).abs().max()) <= PEAK
    loud = torch.linspace(-5, 5, 1001).repeat(1, 2, 1)
    limited = limit(loud)
    assert float(limited.abs().max()) <= PEAK
    assert bool((limited.diff() >= 0).all())
    quiet = loud / 10
    assert torch.equal(limit(quiet), quiet)


def test_sound_past_the_end_of_the_clip_continues():
    late = next(s for s in SCENES if any(2.1 < event.time < 2.4 for event in s.events))
    event = next(event for event in late.events if event.time > 2.1)
    waveform = sound([late], 2.6)[0]
    sample = round(event.time * RATE)
    assert waveform[:, sample : sample + 480].abs().max() > 0.003


def test_the_beginning_does_not_depend_on_the_length():
    short, long = sound(SCENES[:8], 1.0), sound(SCENES[:8], 2.3)
    assert torch.allclose(short, long[..., : short.shape[-1]], atol=1e-5)


def test_an_impact_at_the_very_end_is_cut_not_lost():
    waveform = sound([blow(time=0.4999)], 0.5)
    assert waveform.shape[-1] == 12_000
    assert torch.isfinite(waveform).all()


def test_a_sound_does_not_depend_on_its_batch():
    together = sound(SCENES[:6], 1.0)
    for row in range(6):
        assert torch.allclose(sound([SCENES[row]], 1.0)[0], together[row], atol=1e-5)


def test_a_mirrored_scene_swaps_the_ears():
    scenes = SCENES[:8]
    mirrored = sound([scene.mirrored() for scene in scenes], 1.0)
    assert torch.allclose(mirrored, sound(scenes, 1.0).flip(1), atol=1e-5)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_the_pitch_does_not_depend_on_the_sample_rate(rate):
    scene = blow("metal")
    waveform = sound([scene], 1.25, rate)[0].sum(0)[rate // 4 :]
    assert len(waveform) == rate
    peak = int(torch.fft.rfft(waveform).abs().argmax())
    assert min(abs(peak - frequency) for frequency, _, _ in TIMBRES["metal"].modes) < 4


def test_a_low_sample_rate_does_not_fold_modes_back():
    magnitude = torch.fft.rfft(sound([blow("glass", "small")], 1.25, 8_000)[0].sum(0)[2000:]).abs()
    audible = [
        f * SIZE_PITCH["small"] for f, _, _ in TIMBRES["glass"].modes if f * SIZE_PITCH["small"] < 3600
    ]
    assert abs(int(magnitude.argmax()) - audible[0]) < 4
