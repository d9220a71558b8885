"""Given sound, given video, and one stream alone."""

from fractions import Fraction

import pytest
import torch

import media_samples
import tiny
from soundstage.core.errors import MediaError, RequestError
from soundstage.media.audio import read_sound
from soundstage.media.probe import probe
from soundstage.media.video import read_clip
from soundstage.pipelines.pipeline import Pipeline

SIZE = {"width": 32, "height": 32}


def test_clip_is_as_long_as_the_sound_and_carries_it_exactly(generate, media):
    made = generate(audio=media / "speech.wav", **SIZE)
    given = read_sound(media / "speech.wav")
    assert made.pixels.shape[1] == 24
    assert made.sample_rate == given.sample_rate
    assert torch.equal(made.waveform, given.waveform[:, : made.waveform.shape[1]])
    assert made.waveform.shape[1] == 24_000


def test_sound_shorter_than_the_clip_is_followed_by_silence(generate, media):
    made = generate(audio=media / "speech.wav", duration=1.5, **SIZE)
    assert made.pixels.shape[1] == 36
    assert made.waveform.shape[1] == 36_000
    assert made.waveform[:, 24_000:].count_nonzero() == 0


def test_sound_shorter_than_the_clip_can_be_completed(generate, seen, media):
    made = generate(audio=media / "speech.wav", duration=1.5, complete_audio=True, **SIZE)
    given = read_sound(media / "speech.wav").waveform
    assert torch.equal(made.waveform[:, :24_000], given[:, :24_000])
    assert made.waveform[:, 24_000:].count_nonzero() > 0
    assert (made.waveform[:, 24_000] - made.waveform[:, 23_999]).abs().max() < 1e-3  # no click
    kept = seen[0][1].timesteps[0] == 0
    assert kept[:25].all()
    assert not kept[26:].any()


def test_sound_can_begin_later(generate, media):
    made = generate(audio=media / "speech.wav", audio_start=0.5, **SIZE)
    given = read_sound(media / "speech.wav").waveform
    assert made.pixels.shape[1] == 12
    assert torch.allclose(made.waveform, given[:, 12_000:24_000], atol=1e-6)


def test_conditioning_changes_what_the_model_hears_and_nothing_else(generate, seen, media):
    fields = {"audio": media / "speech.wav", "num_inference_steps": 1, **SIZE}
    plain = generate(**fields)
    loud = generate(condition_loudness=-10.0, **fields)
    noisy = generate(condition_noise=-40.0, **fields)
    assert torch.equal(plain.waveform, loud.waveform)
    assert torch.equal(plain.waveform, noisy.waveform)
    heard = [audio.latents for _, audio in seen]
    assert not torch.equal(heard[0], heard[1])
    assert not torch.equal(heard[0], heard[2])


def test_sound_that_is_not_there_is_named(generate, media):
    with pytest.raises(MediaError, match="no sound"):
        generate(audio=media / "silent.mp4", **SIZE)
    with pytest.raises(MediaError, match="after second 5"):
        generate(audio=media / "speech.wav", audio_start=5.0, **SIZE)


def test_sound_for_a_video_leaves_its_picture_alone(generate, media, tmp_path):
    made = generate(video=media / "clip.mp4")
    source = read_clip(media / "clip.mp4")
    assert torch.equal(made.frames, source.frames)
    assert made.waveform.shape[1] == 25 * 1000
    written = read_clip(made.save(tmp_path / "made.mp4"))
    assert torch.equal(written.frames, source.frames)
    assert written.waveform is not None
    assert packets(tmp_path / "made.mp4") == packets(media / "clip.mp4")


def packets(path):
    import av

    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize(
    ("clip", "seen_frames"),
    [
        ({"num_frames": 20, "height": 36, "width": 50, "frame_rate": Fraction(24000, 1001)}, 25),
        ({"num_frames": 40, "height": 32, "width": 32, "frame_rate": 50}, 25),
        ({"num_frames": 9, "height": 64, "width": 32, "frame_rate": 12}, 9),
    ],
)
def test_any_video_is_seen_at_the_conditioning_size(generate, seen, tmp_path, clip, seen_frames):
    path = media_samples.write_video(tmp_path / "clip.mp4", **clip)
    made = generate(video=path, condition_size="32x32")
    assert seen[0][0].latents.shape[1] == ((seen_frames - 1) // 8 + 1) * 4
    seconds = Fraction(clip["num_frames"]) / Fraction(clip["frame_rate"])
    assert abs(made.waveform.shape[1] / made.sample_rate - float(seconds)) < 1 / 24
    written = read_clip(made.save(tmp_path / "made.mp4"))
    assert written.frames.shape[:3] == (clip["num_frames"], clip["height"], clip["width"])


def test_beginning_of_the_sound_can_be_given(generate, seen, media):
    fields = {"video": media / "clip.mp4", "audio": media / "speech.wav", "audio_start": 0.5}
    made = generate(complete_audio=True, **fields)
    given = read_sound(media / "speech.wav").waveform
    assert torch.allclose(made.waveform[:, :12_000], given[:, 12_000:24_000], atol=1e-6)
    kept = seen[0][1].timesteps[0] == 0
    assert 0 < kept.sum() < len(kept)
    assert seen[0][0].timesteps.count_nonzero() == 0


def test_video_that_is_too_long_to_complete_its_sound_is_refused(generate, media, tmp_path):
    path = media_samples.write_video(tmp_path / "long.mp4", num_frames=21, frame_rate=1, silent=True)
    with pytest.raises(RequestError, match="complete_audio goes up to 20 s"):
        generate(video=path, audio=media / "speech.wav", complete_audio=True)


def test_sound_alone_needs_only_its_own_weights(generate, seen, tmp_path, pipeline):
    path = tiny.write_embedded(tmp_path / "tiny.safetensors")
    small = Pipeline.load(path, sound_only=True)
    names = [name for name, _ in small.transformer.named_parameters()]
    names += [name for name, _ in small.prompts.text.connectors.named_parameters()]
    assert names
    assert all("audio" in name for name in names)
    assert small.components.video_vae is None
    fields = {"no_video": True, "num_frames": 17, "num_inference_steps": 2, "seed": 3}
    whole = generate(guidance_scale=None, audio_guidance_scale=None, **fields)
    alone = small("a red ball bounces on a wooden floor", **fields)
    assert whole.pixels is None
    assert torch.equal(whole.waveform, alone.waveform)
    assert all(video is None for video, _ in seen)
    assert alone.duration == pytest.approx(17 / 24, abs=1e-3)
    with pytest.raises(RequestError, match="loaded for sound only"):
        small("a red ball")
    with pytest.raises(RequestError, match="no picture"):
        alone.save(tmp_path / "clip.mp4")


def test_silent_clip_is_computed_without_or_with_sound(generate, seen, tmp_path):
    fields = {"num_frames": 9, **SIZE}
    skipped, dropped, joint = (generate(no_audio=how, **fields) for how in ("skip", "discard", None))
    assert skipped.waveform is None
    assert dropped.waveform is None
    assert torch.equal(dropped.pixels, joint.pixels)
    assert [audio is None for _, audio in seen] == [True] * 2 + [False] * 4
    written = skipped.save(tmp_path / "clip.mp4")
    assert probe(written).audio is None
    with pytest.raises(RequestError, match="the clip is silent"):
        skipped.save(tmp_path / "clip.wav")
