"""Every command of the guides to the modes runs, on a tiny random model and small files of those names."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import media_samples
from soundstage.cli.main import run
from soundstage.media.probe import probe

GUIDES = Path(__file__).parents[2] / "docs" / "guide"
PAGES = (
    "image.md",
    "audio-to-video.md",
    "video-to-audio.md",
    "retake.md",
    "extend.md",
    "inpaint.md",
    "reference.md",
)
QUICK = ["--steps", "1", "--guidance-scale", "1", "--audio-guidance-scale", "1", "--quiet"]
SMALL = ["--size", "32x32"]


def commands():
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", (GUIDES / page).read_text(), re.DOTALL):
            for line in block.splitlines():
                yield pytest.param(shlex.split(line), id=f"{page}: {line[20:90]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guides")
    media_samples.write_video(folder / "clip.mp4", num_frames=96)
    media_samples.write_video(folder / "other.mp4", num_frames=30, height=24, width=40, frame_rate=25)
    media_samples.write_picture(folder / "photo.png")
    media_samples.write_picture(folder / "end.png", height=64, width=32)
    media_samples.write_speech(folder / "speech.wav", seconds=2.0)
    media_samples.write_mask(folder / "mask.png")
    return folder


@pytest.mark.parametrize("words", list(commands()))
def test_command_of_a_guide_runs(words, folder, tiny_model, monkeypatch, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)  # an output may bear the name of an input
    monkeypatch.chdir(tmp_path)
    assert words[:2] == ["soundstage", "generate"]
    size = [] if "--video" in words else SMALL
    assert run([*words[1:], "--model", str(tiny_model), *QUICK, *size]) == 0
    written = probe(tmp_path / words[words.index("-o") + 1])
    silent = "--no-audio" in words
    assert (written.audio is None) == silent
    assert (written.video is None) == (words[-1] == "sound.wav")
