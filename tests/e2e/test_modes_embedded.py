"""Each mode on the model inside the package: small and with few steps, so rough, but whole."""

import pytest
import torch

import media_samples
from soundstage.media.video import read_clip
from soundstage.pipelines.pipeline import Pipeline

PROMPT = "a red ball bounces on a wooden floor"


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    media_samples.write_video(folder / "clip.mp4", height=64, width=64)
    media_samples.write_picture(folder / "photo.png", height=64, width=64)
    media_samples.write_speech(folder / "speech.wav")
    media_samples.write_mask(folder / "mask.png", height=64, width=64)
    return folder


@pytest.mark.parametrize(
    ("given", "num_frames"),
    [
        ({"image": "photo.png", "num_frames": 25}, 25),
        ({"audio": "speech.wav"}, 24),
        ({"video": "clip.mp4"}, 25),
        ({"no_video": True, "num_frames": 25}, None),
        ({"no_audio": "skip", "num_frames": 25}, 25),
        ({"video": "clip.mp4", "retake": "0.4-0.8"}, 25),
        ({"video": "clip.mp4", "extend": "forward=0.5s"}, 37),
        ({"video": "clip.mp4", "join": "clip.mp4", "num_frames": 9}, 59),
        ({"video": "clip.mp4", "mask": "mask.png"}, 25),
        ({"video": "clip.mp4", "outpaint": "96x64"}, 25),
        ({"reference_video": "clip.mp4", "reference_audio": "speech.wav", "num_frames": 25}, 25),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_mode_makes_a_file(pipeline, media, tmp_path, given, num_frames):
    files = {
        k: media / v if "." in str(v) and "-" not in str(v) and "=" not in str(v) else v
        for k, v in given.items()
    }
    made = pipeline(PROMPT, seed=1, num_inference_steps=2, **files)
    if num_frames is None:
        assert made.pixels is None
        assert made.waveform.abs().max() > 0
        made.save(tmp_path / "made.wav")
        return
    assert made.pixels.shape[1] == num_frames
    written = read_clip(made.save(tmp_path / "made.mp4"))
    assert len(written.frames) == num_frames
    assert (written.waveform is None) == ("no_audio" in given)


def test_given_first_picture_comes_back(pipeline, media):
    """The picture passes through the autoencoder only, so the first frame shows it."""
    given = media_samples.frames(1, 64, 64)[0].float()
    made = pipeline(PROMPT, seed=1, num_inference_steps=2, image=media / "photo.png", num_frames=9)
    plain = pipeline(PROMPT, seed=1, num_inference_steps=2, num_frames=9)
    errors = [(clip.frames[0].float() - given).abs().mean() for clip in (made, plain)]
    assert errors[0] < errors[1] / 2
    assert torch.isfinite(made.waveform).all()
