"""Modes, stages, windows, prompts in time, LoRAs and attention maps used together, or refused in one line."""

import json

import pytest
import torch

import media_samples
import tiny
from soundstage.core.errors import RequestError
from soundstage.media.video import read_clip
from soundstage.pipelines.attention_recorder import AttentionRecorder
from soundstage.pipelines.attention_report import part_of, save_attention_maps
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.request import GenerationRequest

PROMPT = "a red ball bounces on a wooden floor"
PLAIN = {"num_inference_steps": 2, "guidance_scale": 1.0, "audio_guidance_scale": 1.0}
TWO = {"plan": "two_stage", "upsampler": "bicubic"}


def test_retake_in_two_stages_changes_the_span_and_nothing_else(generate, media):
    source = read_clip(media / "clip.mp4")
    made = generate(video=media / "clip.mp4", retake="0.4-0.6", **TWO)
    begin, first, last = round(made.start * 24), 9, 15
    changed = [(a != b).any().item() for a, b in zip(made.frames, source.frames[begin:], strict=False)]
    assert changed == [first <= index + begin < last for index in range(len(changed))]


def test_picture_is_kept_in_both_stages_at_the_size_of_each(generate, seen, media):
    generate(image=str(media / "photo.png"), num_frames=9, width=64, height=64, **TWO)
    kept = [(video.timesteps == 0).sum().item() for video, _ in seen]
    assert len(set(kept)) == 2
    assert sorted(set(kept)) == [4, 16]


def test_given_sound_stays_given_in_both_stages(generate, seen, media):
    made = generate(audio=media / "speech.wav", num_frames=9, width=64, height=32, **TWO)
    assert all(audio.sigma.count_nonzero() == 0 for _, audio in seen)
    assert made.pixels.shape == (3, 9, 32, 64)


def test_second_stage_is_refused_where_no_picture_is_made(generate, media):
    for fields in ({"no_video": True}, {"video": media / "clip.mp4"}):
        with pytest.raises(RequestError, match="plan 'two_stage' enlarges the picture"):
            generate(**fields, **TWO)


@pytest.mark.parametrize("name", ["window", "overlap", "drift_control"])
def test_windows_are_refused_where_all_is_generated_at_once(generate, media, name):
    with pytest.raises(RequestError, match=f"{name}=1 is about long clips that come in windows; retake"):
        generate(video=media / "clip.mp4", retake="0.4-0.6", **{name: 1})


@pytest.mark.parametrize("no_audio", ["skip", "discard"])
def test_long_silent_clip_comes_in_windows(generate, seen, no_audio):
    made = generate(no_audio=no_audio, num_frames=57, width=32, height=32, num_inference_steps=1)
    assert made.pixels.shape[1] == 57
    assert made.waveform is None
    assert len(seen) == 2
    assert (
        "2.4 s is beyond the 2.21 s that the model was trained for: generated in 2 windows" in made.notes[0]
    )


def test_long_sound_alone_comes_in_windows_that_continue_each_other(generate, seen):
    made = generate(no_video=True, num_frames=73, num_inference_steps=1)
    assert made.pixels is None
    assert made.waveform.shape == (2, 73_000)
    assert len(seen) == 2
    kept = [(audio.timesteps == 0).sum().item() for _, audio in seen]
    assert kept[0] == 0
    assert kept[1] > 20  # tokens of a second that both windows share


def test_pictures_of_a_long_clip_are_shown_by_the_windows_they_lie_in(generate, seen, media):
    size = {"num_frames": 44, "width": 32, "height": 32, "window": 25, "num_inference_steps": 1}
    generate(**size)
    plain = [video.latents.shape[1] for video, _ in seen]
    seen.clear()
    generate(image=f"{media / 'photo.png'}@40", **size)
    more = [video.latents.shape[1] - n for (video, _), n in zip(seen, plain, strict=True)]
    assert more[0] == 0
    assert more[-1] == 4


def test_prompts_in_time_are_on_the_clock_of_the_result(generate, pipeline, tmp_path, monkeypatch):
    starts = []
    weights = "soundstage.pipelines.text_conditioning.PromptSchedule.weights"
    from soundstage.pipelines.text_conditioning import PromptSchedule

    original = PromptSchedule.weights

    def recorded(self, *args):
        starts.append(self.start)
        return original(self, *args)

    monkeypatch.setattr(weights, recorded)
    path = media_samples.write_video(tmp_path / "long.mp4", num_frames=96)
    made = generate(video=path, retake="3-3.5", prompt_at=("3-4s:a blue cube",))
    assert set(starts) == {made.start}
    assert made.start > 1
    starts.clear()
    generate(num_frames=44, width=32, height=32, window=25, prompt_at=("1-:a blue cube",))
    assert sorted(set(starts))[0] == 0
    assert sorted(set(starts))[1] == pytest.approx(8 / 24)
    with pytest.raises(RequestError, match="prompt_at ends at 1 s; what is generated begins at"):
        generate(video=path, retake="3-3.5", prompt_at=("0-1s:a blue cube",))


def test_attention_maps_of_an_extension_are_about_what_was_generated(pipeline, tmp_path):
    recorder = AttentionRecorder()
    path = media_samples.write_video(tmp_path / "clip.mp4", num_frames=60)
    request = GenerationRequest(prompt=PROMPT, video=path, extend=("forward=0.5s",), **{**PLAIN, "seed": 1})
    made = pipeline(request, attention=recorder)
    maps = recorder.maps()
    part = part_of(made, maps)
    assert maps.frames == (60 - 25, 25 + 12)
    assert torch.equal(part.pixels, made.pixels[:, 35:])
    page = save_attention_maps(tmp_path / "maps", made, maps)
    assert page.is_file()
    assert json.loads((tmp_path / "maps" / "numbers.json").read_text())["steps"]


def test_attention_maps_are_refused_for_one_stream_and_for_windows(pipeline):
    with pytest.raises(RequestError, match="one is absent"):
        pipeline(PROMPT, no_video=True, attention=AttentionRecorder(), **PLAIN)
    with pytest.raises(RequestError, match="generated at once, and this one comes in windows"):
        pipeline(PROMPT, num_frames=44, window=25, attention=AttentionRecorder(), **PLAIN)


def test_sound_alone_and_whole_models_share_a_prompt_cache(tmp_path):
    file = tiny.write_embedded(tmp_path / "tiny.safetensors")
    options = {"device": "cpu", "prompt_cache": tmp_path / "cache"}
    sound = {"num_frames": 9, "no_video": True, **PLAIN}
    first = Pipeline.load(file, sound_only=True, **options)(PROMPT, **sound)
    whole = Pipeline.load(file, **options)
    clip = whole(PROMPT, num_frames=9, width=32, height=32, **PLAIN)
    assert clip.pixels is not None
    assert torch.equal(whole(PROMPT, **sound).waveform, first.waveform)
    again = Pipeline.load(file, sound_only=True, **options)
    assert torch.equal(again(PROMPT, **sound).waveform, first.waveform)
    with pytest.raises(RequestError, match="LoRAs are for the whole model"):
        again(PROMPT, loras=("style.safetensors",), **sound)


def test_only_whole_clips_of_picture_and_sound_are_streamed(pipeline, media):
    with pytest.raises(RequestError, match="video_to_audio is not made part by part"):
        pipeline.stream(PROMPT, video=media / "clip.mp4")
    stream = pipeline.stream(
        PROMPT, image=str(media / "photo.png"), num_frames=9, width=32, height=32, **PLAIN
    )
    assert [part.pixels.shape[1] for part in stream] == [9]
