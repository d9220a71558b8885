"""What is given stays given: frozen streams and kept tokens, in every step of every sampler."""

import pytest
import torch

from soundstage.diffusion.samplers import SAMPLERS
from soundstage.media.audio import read_sound
from soundstage.media.video import read_clip
from soundstage.pipelines.encode import Encoders
from soundstage.pipelines.modes.pictures import hold_last

SIZE = {"width": 32, "height": 32}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_frozen_sound_enters_every_step_as_encoded_at_level_zero(generate, seen, pipeline, media, sampler):
    generate(audio=media / "speech.wav", sampler=sampler, num_frames=17, modality_scale=2.0, **SIZE)
    sound = read_sound(media / "speech.wav")
    encoded = Encoders(pipeline.components).audio_tokens(sound.waveform, sound.sample_rate, 18)
    assert len(seen) >= 2
    for _, audio in seen:
        for item in audio.latents:  # one per pass of guidance
            assert torch.equal(item, encoded[0])
        assert audio.timesteps.count_nonzero() == 0
        assert audio.sigma.count_nonzero() == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_frozen_picture_enters_every_step_as_encoded_at_level_zero(generate, seen, pipeline, media, sampler):
    generate(video=media / "clip.mp4", sampler=sampler)
    frames = hold_last(read_clip(media / "clip.mp4").frames, 25)
    encoded = Encoders(pipeline.components).video(frames)
    tokens = seen[0][0].latents
    for video, audio in seen:
        assert torch.equal(video.latents, tokens)
        assert torch.equal(video.latents.flatten().sort().values, encoded.flatten().sort().values)
        assert video.timesteps.count_nonzero() == 0
        assert video.sigma.count_nonzero() == 0
        assert audio.sigma.count_nonzero() == len(audio.sigma)


def test_frozen_stream_takes_no_noise_from_the_seed(generate, seen, media):
    plain = {"num_frames": 17, "num_inference_steps": 1, **SIZE}
    generate(**plain)
    generate(audio=media / "speech.wav", **plain)
    generate(no_audio="skip", **plain)
    noise = [video.latents for video, _ in seen]
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(noise[0], noise[2])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "fields",
    [
        {"image": "photo.png", "num_frames": 17, **SIZE},
        {"video": "clip.mp4", "retake": "0.5-0.8"},
        {"video": "clip.mp4", "extend": "forward=0.4s"},
        {"video": "clip.mp4", "mask": "mask.png"},
        {"audio": "speech.wav", "complete_audio": True, "duration": 1.4, **SIZE},
    ],
    ids=["image", "retake", "extend", "inpaint", "complete_audio"],
)
def test_kept_tokens_stay_kept(generate, seen, media, sampler, fields):
    paths = {k: media / v for k, v in fields.items() if str(v).endswith((".png", ".mp4", ".wav"))}
    generate(sampler=sampler, num_inference_steps=3, **fields | paths)
    kept_any = False
    for stream in range(2):
        first = seen[0][stream]
        kept = first.timesteps[0] == 0
        kept_any = kept_any or bool(kept.any() and not kept.all())
        for call in seen:
            assert torch.equal(call[stream].timesteps[0] == 0, kept)
            assert torch.equal(call[stream].latents[0, kept], first.latents[0, kept])
            if not kept.all():
                assert float(call[stream].sigma[0]) > 0
    assert kept_any
