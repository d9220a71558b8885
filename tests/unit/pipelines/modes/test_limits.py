"""What is refused, and what is noted: moments, rates, interlaced pictures, given sounds, long ones."""

from fractions import Fraction

import pytest
import torch

import media_files
import media_samples
from soundstage.core.errors import MediaError, RequestError
from soundstage.media.probe import probe
from soundstage.media.video import read_clip


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Frames at 25 a second of which some are left out."""
    path = tmp_path_factory.mktemp("uneven") / "uneven.mp4"
    frames = media_samples.frames(25, 32, 32).numpy()
    ticks = [0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24]
    return media_files.write_video(path, [frames[i] for i in ticks], rate=Fraction(25), ticks=ticks)


@pytest.mark.parametrize(
    ("fields", "span"),
    [
        ({"retake": "0.4-0.6"}, "frames 9 to 14 are generated, 0.375s to 0.583333s; the nearest is 14"),
        ({"extend": "forward=0.25s"}, "frames 25 to 30 are generated, 1.04167s to 1.25s; the nearest is 25"),
    ],
    ids=["retake", "extend"],
)
def test_picture_in_what_is_given_is_refused_with_the_frames_that_are_not(generate, media, fields, span):
    with pytest.raises(RequestError, match=r"image photo\.png at frame 20 lies in what is given") as caught:
        generate(video=media / "clip.mp4", image=f"{media / 'photo.png'}@20", **fields)
    assert span in str(caught.value)


def test_picture_after_the_end_is_refused_before_anything_is_loaded(
    media, tmp_path, capsys, monkeypatch, tiny_model
):
    from soundstage.cli.main import run

    monkeypatch.setattr("soundstage.pipelines.pipeline.Pipeline.load", None)  # must not be called
    image = f"{media / 'photo.png'}@9s"
    words = ["a ball", "--image", image, "-o", str(tmp_path / "c.mp4"), "--model", str(tiny_model)]
    assert run(["generate", *words]) == 2
    assert "moment 9s is outside the clip of 49 frames; the last is 48, at 2s" in capsys.readouterr().err
    assert not (tmp_path / "c.mp4").exists()


def test_extension_brings_a_varying_rate_to_a_constant_one_and_says_so(generate, uneven):
    assert probe(uneven).video.is_variable
    made = generate(video=uneven, extend="forward=0.24s")
    assert made.pixels.shape[1] == 31
    assert "uneven.mp4 has a variable frame rate: brought to a constant 25 fps" in made.notes


def test_retake_of_a_varying_rate_names_the_one_to_convert_to(generate, uneven):
    with pytest.raises(MediaError, match=r"bring it to a constant 25 frames per second first"):
        generate(video=uneven, retake="0.2-0.5")


def test_interlaced_video_is_noted(generate, tmp_path):
    path = tmp_path / "fields.mp4"
    frames = list(media_samples.frames(17, 32, 32).numpy())
    media_files.write_video(path, frames, rate=Fraction(25), options={"x264-params": "tff=1"})
    assert probe(path).video.is_interlaced
    made = generate(video=path, condition_size="32x32")
    assert any("fields.mp4 is interlaced" in note for note in made.notes)


def test_retake_can_be_made_for_a_given_sound(generate, seen, media, tmp_path):
    source = read_clip(media / "clip.mp4")
    made = generate(video=media / "clip.mp4", audio=media / "speech.wav", retake="0.4-0.8")
    assert all(audio.sigma.count_nonzero() == 0 for _, audio in seen)
    written = read_clip(made.save(tmp_path / "made.mp4"))
    start, end = 19_200, 38_400
    assert (written.waveform[:, :start] - source.waveform[:, :start]).abs().max() < 2**-22
    assert (written.waveform[:, end:] - source.waveform[:, end:]).abs().max() < 2**-22
    said = media_samples.sound(1.0, 48_000, 220.0)[:, : end - start]
    middle = slice(start + 2000, end - 2000)
    assert (written.waveform[:, middle] - said[:, 2000:-2000]).abs().max() < 0.01  # resampled from 24 kHz


def test_extension_can_be_made_for_a_given_sound(generate, seen, media):
    made = generate(video=media / "clip.mp4", audio=media / "speech.wav", extend="forward=0.5s")
    assert all(audio.sigma.count_nonzero() == 0 for _, audio in seen)
    said = media_samples.sound(1.0, 48_000, 220.0)[:, :24_000]
    assert (made.waveform[:, 50_000 + 1000 :] - said[:, 1000:]).abs().max() < 0.01


def test_painted_video_can_have_another_sound(generate, media):
    made = generate(video=media / "clip.mp4", audio=media / "speech.wav", mask=media / "mask.png")
    said = media_samples.sound(1.0, 24_000, 220.0)
    assert made.sample_rate == 24_000
    torch.testing.assert_close(made.waveform[:, :24_000], said, atol=2**-14, rtol=0)
    assert not made.waveform[:, 24_000:].any()


def test_sounds_that_say_two_things_are_refused(generate, media):
    given = {"video": media / "clip.mp4", "audio": media / "speech.wav", "retake": "0.4-0.8"}
    with pytest.raises(RequestError, match="complete_audio and retake do not go together"):
        generate(complete_audio=True, **given)
    with pytest.raises(RequestError, match="keep=video and audio do not go together"):
        generate(keep="video", **given)


def test_reference_is_seen_as_strongly_as_asked(generate, seen, media):
    clip = {"num_frames": 9, "width": 32, "height": 32, "num_inference_steps": 1}
    full, half = (
        generate(reference_video=str(media / "clip.mp4"), reference_attention=weight, **clip)
        for weight in (None, 0.5)
    )
    assert not torch.equal(full.pixels, half.pixels)
    with pytest.raises(RequestError, match="reference_attention=2 is outside"):
        generate(reference_video=str(media / "clip.mp4"), reference_attention=2.0, **clip)


def test_long_sound_is_given_to_each_window_as_it_is_and_comes_back_exactly(
    generate, seen, pipeline, tmp_path
):
    path = media_samples.write_speech(tmp_path / "long.wav", seconds=2.0)
    size = {"width": 32, "height": 32, "window": 25, "overlap": 17, "num_inference_steps": 1}
    made = generate(audio=path, **size)
    said = media_samples.sound(2.0, 24_000, 220.0)
    assert made.pixels.shape[1] == 48
    torch.testing.assert_close(made.waveform, said, atol=2**-14, rtol=0)
    assert all(audio.sigma.count_nonzero() == 0 for _, audio in seen)
    frozen = [audio.latents for _, audio in seen]
    assert len(frozen) == 4
    assert not torch.equal(frozen[0], frozen[1])  # each window hears its own part
    stream = pipeline.stream("a red ball", audio=path, **size, guidance_scale=1.0, audio_guidance_scale=1.0)
    written = read_clip(stream.save(tmp_path / "made.mp4"))
    assert written.frames.shape[0] == 48
    assert media_files.lag(said, written.waveform) == 0


def test_long_video_is_heard_window_by_window_and_keeps_its_packets(generate, seen, tmp_path):
    path = media_samples.write_video(tmp_path / "long.mp4", num_frames=60)
    made = generate(video=path, condition_size="32x32", num_inference_steps=1)  # longer than 49 frames
    assert all(video.sigma.count_nonzero() == 0 for video, _ in seen)
    assert len(seen) == 2
    assert made.waveform.shape == (2, 60_000)
    assert "generated in 2 windows of 49 frames" in made.notes[0]
    out = made.save(tmp_path / "made.mp4")
    assert media_files.packets(out) == media_files.packets(path)


def test_video_beyond_20_seconds_is_heard_to_its_end(generate, tmp_path):
    path = media_samples.write_video(tmp_path / "long.mp4", num_frames=22 * 8, frame_rate=8)
    made = generate(video=path, condition_size="32x32", num_inference_steps=1)
    assert made.waveform.shape[1] == 22 * 24_000
    assert made.waveform[:, -24_000:].abs().max() > 0


def test_colours_of_a_given_picture_do_not_drift(generate, media):
    with pytest.raises(
        RequestError, match=r"drift_control=0\.5 is about colours; video_to_audio makes no picture"
    ):
        generate(video=media / "clip.mp4", drift_control=0.5)


def test_edit_of_a_large_video_is_computed_smaller_and_says_so(generate, seen, tmp_path):
    path = media_samples.write_video(tmp_path / "large.mp4", num_frames=17, height=160, width=320)
    made = generate(video=path, retake="0.2-0.4", num_inference_steps=1)
    assert made.pixels.shape[2:] == (160, 320)
    tokens = seen[0][0].latents.shape[1]
    assert tokens <= 3 * 4 * 8  # 96 x 48 pixels
    assert "320x160 is much larger than what the model usually makes: made at 96x48" in made.notes[-1]
    whole = generate(video=path, retake="0.2-0.4", num_inference_steps=1, condition_size="320x160")
    assert seen[-1][0].latents.shape[1] > 500
    assert not any("much larger" in note for note in whole.notes)


def test_silent_video_gets_the_sound_of_its_retake(generate, media, tmp_path):
    made = generate(video=media / "silent.mp4", audio=media / "speech.wav", retake="0.4-0.8")
    written = read_clip(made.save(tmp_path / "made.mp4"))
    assert written.waveform.shape[1] == 50_000
    assert not written.waveform[:, :19_200].any()
    assert written.waveform[:, 21_000:37_000].abs().max() > 0.1
    assert not any("stays silent" in note for note in made.notes)
