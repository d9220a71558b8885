"""`soundstage world` writes clips people can look at, with their ground truth, or one clear line."""

import json

import pytest

from soundstage.cli.main import run
from soundstage.media.mux import read_metadata
from soundstage.media.video import read_clip

SMALL = ("--size", "32x32", "--duration", "0.5")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "new" / "samples"
    assert (
        run(["world", "--out", str(out), "-n", "2", "--seed", "3", "--kinds", "bounce", "--plain", *SMALL])
        == 0
    )
    return out


def test_clips_have_picture_and_stereo_sound(samples):
    clip = read_clip(samples / "train-00003.mp4")
    assert clip.frames.shape == (12, 32, 32, 3)
    assert clip.frame_rate == 24
    assert clip.waveform.shape[0] == 2
    assert clip.sample_rate == 24_000


def test_ground_truth_lists_every_clip(samples):
    records = json.loads((samples / "events.json").read_text())
    assert [record["file"] for record in records] == ["train-00003.mp4", "train-00004.mp4"]
    for record in records:
        assert record["colour"] in record["caption"]
        assert all(
            0 <= event["time"] < 0.5 and event["sound"] == record["floor"] for event in record["events"]
        )


def test_the_clip_carries_its_ground_truth(samples):
    records = json.loads((samples / "events.json").read_text())
    assert read_metadata(samples / "train-00003.mp4") == records[0]


def test_nothing_else_is_left_in_the_folder(samples):
    assert len(list(samples.iterdir())) == 3


def test_paths_and_captions_are_the_output(tmp_path, capsys):
    assert run(["world", "--out", str(tmp_path), "-n", "1", "--split", "held_out", *SMALL]) == 0
    path, caption = capsys.readouterr().out.strip().split("  ")
    assert path == str(tmp_path / "held_out-00000.mp4")
    assert caption == json.loads((tmp_path / "events.json").read_text())[0]["caption"]


def test_a_fractional_frame_rate_is_exact(tmp_path):
    assert run(["world", "--out", str(tmp_path), "-n", "1", "--frame-rate", "30000/1001", *SMALL]) == 0
    assert read_clip(tmp_path / "train-00000.mp4").frame_rate.denominator == 1001


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "64"], "WIDTHxHEIGHT"),
        (["--size", "0x64"], "width=0 should be positive"),
        (["--size", "20x64"], "use 48 or more"),
        (["--duration", "0"], "is not between 0.042 and 60 seconds"),
        (["--duration", "nan"], "is not between"),
        (["--duration", "1e9"], "is not between"),
        (["--frame-rate", "fast"], "30000/1001"),
        (["--frame-rate", "1/0"], "30000/1001"),
        (["--frame-rate", "-24"], "above 0"),
        (["--kinds", "bounse"], "did you mean 'bounce'?"),
        (["-n", "0"], "num_clips=0 should be 1 or more"),
    ],
)
def test_a_wrong_value_is_one_line_and_writes_nothing(tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    assert run(["world", "--out", str(out), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["world", "--out", str(tmp_path / "file" / "out"), *SMALL]) == 2
    assert "cannot make output folder" in capsys.readouterr().err
