"""World clips for the detectors: straight from the renderer, or written and read back."""

import functools

import pytest
import torch

from soundstage.data.world.sample import World, WorldConfig
from soundstage.data.world.scene import Scene
from soundstage.evaluation.observation import Observation, Timing, observe
from soundstage.media.mux import write_clip
from soundstage.media.video import Clip, to_frames

CONFIG = WorldConfig(split="held_out", kinds=("bounce",), plain=True)


@functools.cache
def rendered(bounce, config=CONFIG):
    """Pixels and waveform of one bounce; do not change them in place."""
    world = World(config)
    scene = Scene(kind="bounce", subject=bounce)
    return world.pixels([scene])[0], world.waveform([scene])[0]


def observation_of(pixels, waveform, config=CONFIG):
    """What a detector sees of a clip that went through no codec."""
    frames = to_frames(pixels)
    times = torch.arange(len(frames), dtype=torch.float64) / float(config.frame_rate)
    rate = None if waveform is None else config.sample_rate
    seconds = len(frames) / float(config.frame_rate)
    timing = Timing(
        video_start=0.0,
        video_duration=seconds,
        audio_start=None if waveform is None else 0.0,
        audio_duration=None if waveform is None else seconds,
    )
    return Observation(Clip(frames, times, waveform, rate, config.frame_rate), timing)


@functools.cache
def observed(seed):
    """Held-out bounce of a seed and its clip; detectors run once for all tests."""
    scene = World(CONFIG).scene(seed).subject
    return scene, observation_of(*rendered(scene))


@pytest.fixture(scope="session", autouse=True)
def few_resamples():
    """Intervals need not be exact here, and a thousand resamples of every metric take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("soundstage.evaluation.statistics.NUM_RESAMPLES", 100)
        yield


@pytest.fixture(scope="session")
def seen():
    """Give `seen(seed)`: a scene and what is observed of it."""
    return observed


@pytest.fixture(scope="session")
def render_scene():
    """Give `render_scene(scene)`: pixels and waveform."""
    return rendered


@pytest.fixture(scope="session")
def as_observation():
    """Give `as_observation(pixels, waveform)`."""
    return observation_of


@pytest.fixture(scope="session")
def world_file(tmp_path_factory):
    """Give a held-out clip as a file, its scene and its observation after decoding."""
    scene = World(CONFIG).scene(9).subject
    pixels, waveform = rendered(scene)
    path = tmp_path_factory.mktemp("world") / "clip.mp4"
    write_clip(
        path,
        pixels,
        waveform,
        frame_rate=CONFIG.frame_rate,
        sample_rate=CONFIG.sample_rate,
        metadata={"caption": World(CONFIG).caption(9)},
    )
    return path, scene, observe(path)
