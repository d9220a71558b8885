"""A tiny pipeline, media files, and a recorder of what the transformer is given."""

import pytest

import media_samples
import tiny
from soundstage.pipelines.pipeline import Pipeline

PROMPT = "a red ball bounces on a wooden floor"


@pytest.fixture(scope="package")
def media(tmp_path_factory):
    """A folder of media: 25 frames at 24 per second of 32 x 32, a second of sound, a picture, a mask."""
    folder = tmp_path_factory.mktemp("media")
    media_samples.write_video(folder / "clip.mp4")
    media_samples.write_video(folder / "silent.mp4", silent=True)
    media_samples.write_picture(folder / "photo.png")
    media_samples.write_speech(folder / "speech.wav")
    media_samples.write_mask(folder / "mask.png")
    return folder


@pytest.fixture(scope="package")
def pipeline(tmp_path_factory):
    return Pipeline.load(tiny.write_embedded(tmp_path_factory.mktemp("model") / "tiny.safetensors"))


@pytest.fixture
def generate(pipeline):
    """Generate with two steps and no guidance, unless the test says otherwise."""

    def run(**fields):
        quick = {"num_inference_steps": 2, "guidance_scale": 1.0, "audio_guidance_scale": 1.0, "seed": 3}
        return pipeline(PROMPT, **{**quick, **fields})

    return run


@pytest.fixture
def seen(pipeline):
    """Record the (video, audio) inputs of every call of the transformer."""
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda module, args: calls.append(args[:2]))
    yield calls
    hook.remove()
