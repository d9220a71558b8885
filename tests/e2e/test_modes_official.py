"""Every mode on tiny models in the layouts of the official releases: whole, from the files to the file."""

from typing import Any

import pytest
import torch

import lora_files
import media_samples
import tiny
from media_files import packets
from soundstage.checkpoints import keymap
from soundstage.checkpoints.versions.ltx_2_5 import LTX_2_5
from soundstage.media.probe import probe
from soundstage.media.video import read_clip
from soundstage.pipelines.loras import linear_layers
from soundstage.pipelines.pipeline import Pipeline

PROMPT = "a red ball bounces on a wooden floor"
QUICK = {
    "seed": 3,
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "audio_guidance_scale": 1.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}
SIZE = {"width": 64, "height": 64, "num_frames": 9}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The files of each generation: single ones, and the split ones of 2.5."""
    folder = tmp_path_factory.mktemp("official")
    return {
        "2.0": tiny.write_model(folder / "2.0.safetensors", "2.0", decodes=True),
        "2.3": tiny.write_model(folder / "2.3.safetensors", "2.3", decodes=True),
        "2.5": tiny.write_pack(folder / "2.5", decodes=True),
    }


@pytest.fixture(scope="module")
def any_text_encoder():
    """Let 2.5 read a tiny Gemma-3, too: what a text means is of no account here."""
    object.__setattr__(LTX_2_5, "reads_gemma_3", True)
    yield
    object.__setattr__(LTX_2_5, "reads_gemma_3", False)


@pytest.fixture(scope="module")
def generate(models, tmp_path_factory, any_text_encoder):
    gemma = tiny.write_gemma(tmp_path_factory.mktemp("text") / "gemma")
    loaded: dict[str, Pipeline] = {}

    def run(generation: str, **fields: Any) -> Any:
        if generation not in loaded:
            loaded[generation] = Pipeline.load(
                models[generation], device="cpu", dtype="float32", text_encoder=gemma, prompt_cache="off"
            )
        return loaded[generation](PROMPT, **{**QUICK, **fields})

    return run


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    media_samples.write_video(folder / "clip.mp4", height=64, width=64)
    media_samples.write_picture(folder / "photo.png", height=64, width=64)
    media_samples.write_speech(folder / "speech.wav", seconds=0.375)
    media_samples.write_mask(folder / "mask.png", height=64, width=64)
    return folder


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
def test_prompt_becomes_a_clip(generate, tmp_path, generation):
    made = generate(generation, **SIZE)
    written = read_clip(made.save(tmp_path / "made.mp4"))
    assert written.frames.shape == (9, 64, 64, 3)
    assert made.sample_rate == (24_000 if generation == "2.0" else 48_000)
    assert made.waveform.shape[1] == 9 * made.sample_rate // 24
    assert made.waveform.std() > 0
    assert made.frames.float().std() > 1


def test_pictures_are_shown_at_their_moments(generate, media):
    plain = generate("2.5", **SIZE)
    made = generate("2.5", image=(str(media / "photo.png"), f"{media / 'photo.png'}@last:0.9"), **SIZE)
    assert made.request.image == (str(media / "photo.png"), f"{media / 'photo.png'}@last:0.9")
    changed = (made.pixels - plain.pixels).abs().mean(dim=(0, 2, 3))
    assert changed.min() > 1e-3


def test_sound_is_given_and_muxed_exactly(generate, media, tmp_path):
    made = generate("2.3", audio=media / "speech.wav", width=64, height=64)
    given = media_samples.sound(0.375, 24_000, 220.0)
    assert made.pixels.shape[1] == 9
    torch.testing.assert_close(made.waveform, given, atol=2**-14, rtol=0)  # 16 bits in the file
    assert probe(made.save(tmp_path / "made.mp4")).audio.sample_rate == 24_000


def test_long_sound_is_given_window_by_window(generate, media, tmp_path):
    media_samples.write_speech(tmp_path / "long.wav", seconds=1.0)
    made = generate("2.3", audio=tmp_path / "long.wav", width=64, height=64, window=17, overlap=9)
    assert made.pixels.shape[1] == 24
    assert "windows of 17 frames" in made.notes[0]
    given = media_samples.sound(1.0, 24_000, 220.0)
    torch.testing.assert_close(made.waveform, given, atol=2**-14, rtol=0)


def test_video_gets_a_sound_and_keeps_its_packets(generate, media, tmp_path):
    made = generate("2.0", video=media / "clip.mp4", condition_size="64x64")
    out = made.save(tmp_path / "made.mp4")
    assert packets(out) == packets(media / "clip.mp4")
    assert made.waveform.shape == (2, 25_000)
    assert made.waveform.std() > 0


def test_sound_alone(generate):
    made = generate("2.5", no_video=True, num_frames=9)
    assert made.pixels is None
    assert made.waveform.shape == (2, 18_000)
    assert made.waveform.std() > 0


def test_retake_changes_its_span_only(generate, media):
    source = read_clip(media / "clip.mp4").frames
    made = generate("2.5", video=media / "clip.mp4", retake="0.4-0.6")
    begin = round(made.start * 24)
    changed = [(a != b).any().item() for a, b in zip(made.frames, source[begin:], strict=False)]
    assert [index + begin for index, is_new in enumerate(changed) if is_new] == list(range(9, 15))


def test_extension_keeps_what_is_given(generate, media):
    source = read_clip(media / "clip.mp4").frames
    made = generate("2.0", video=media / "clip.mp4", extend="forward=0.25s")
    assert torch.equal(made.frames[:25], source)
    assert made.pixels.shape[1] == 31
    assert made.waveform.shape[1] == 31 * 2000


def test_inpainting_changes_the_mask_only(generate, media):
    source = read_clip(media / "clip.mp4").frames
    made = generate("2.3", video=media / "clip.mp4", mask=media / "mask.png")
    changed = (made.frames != source).any(-1).any(0)
    assert changed[32:, 32:].float().mean() > 0.9
    changed[32:, 32:] = False
    assert not changed.any()


def test_second_stage_refines_what_the_trained_upsampler_enlarged(generate, tmp_path):
    upsampler = tiny.write_upsampler(tmp_path / "x2.safetensors")
    made = generate("2.3", plan="two_stage", upsampler=str(upsampler), width=128, height=128, num_frames=9)
    assert made.pixels.shape == (3, 9, 128, 128)


def test_lora_of_transformer_and_text_side_changes_the_clip(generate, tmp_path):
    """The distilled LoRA of 2.0 is of this kind: every layer of the transformer and the text projection."""
    parts = tiny.modules("2.0", decodes=True)
    factors, of_text = (
        lora_files.draw(parts[name], linear_layers(parts[name]))
        for name in (keymap.TRANSFORMER, keymap.CONNECTORS)
    )
    path = lora_files.write(tmp_path / "distilled.safetensors", factors)
    text = lora_files.write(tmp_path / "with_text.safetensors", {**factors, **of_text})
    plain, adapted, more = (
        generate("2.0", loras=loras, **SIZE) for loras in ((), (str(path),), (str(text),))
    )
    for a, b in ((plain, adapted), (adapted, more)):
        assert (a.pixels - b.pixels).abs().mean() > 1e-4
    again = generate("2.0", **SIZE)
    assert torch.equal(plain.pixels, again.pixels)
    assert torch.equal(plain.waveform, again.waveform)


def test_reference_clip_and_voice_are_followed(generate, media):
    given = {"reference_video": str(media / "clip.mp4"), "reference_audio": media / "speech.wav"}
    made, weak = (generate("2.3", reference_attention=weight, **given, **SIZE) for weight in (1.0, 0.0))
    assert (made.pixels - weak.pixels).abs().max() > 0
