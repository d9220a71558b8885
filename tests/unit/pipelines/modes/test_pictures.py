"""Pictures to show and clips to follow."""

import pytest
import torch

import media_samples
from soundstage.core.errors import MediaError, RequestError
from soundstage.media.image import read_image, recompress
from soundstage.media.placement import cover_plainly, place
from soundstage.pipelines.encode import Encoders
from soundstage.pipelines.modes.pictures import extend_to

CLIP = {"num_frames": 17, "width": 32, "height": 32}
FRAME_TOKENS = 4  # of 32 x 32 pixels, in tokens of 16


def test_picture_at_frame_0_is_latent_frame_0(generate, seen, pipeline, media):
    generate(image=media / "photo.png", **CLIP)
    picture = read_image(media / "photo.png")
    latents = Encoders(pipeline.components).video(place((40, 48), (32, 32)).apply(picture[None]))
    video = seen[0][0]
    assert video.latents.shape[1] == 3 * FRAME_TOKENS
    assert (video.timesteps[0] == 0).tolist() == [True] * FRAME_TOKENS + [False] * 2 * FRAME_TOKENS
    given = video.latents[0, :FRAME_TOKENS]
    assert torch.equal(given.flatten().sort().values, latents.flatten().sort().values)


@pytest.mark.parametrize(("when", "frame"), [("8", 8), ("last", 16), ("-5", 12), ("0.5s", 12)])
def test_other_pictures_are_appended_at_their_frame(generate, seen, media, when, frame):
    generate(image=f"{media / 'photo.png'}@{when}", **CLIP)
    video = seen[0][0]
    assert video.latents.shape[1] == 4 * FRAME_TOKENS
    time = video.positions[0, 0, -FRAME_TOKENS:]
    assert torch.allclose(time, torch.tensor([frame / 24, (frame + 1) / 24]))
    assert (video.timesteps[0] == 0).tolist() == [False] * 3 * FRAME_TOKENS + [True] * FRAME_TOKENS


def test_strength_lets_the_picture_change(generate, seen, media):
    generate(image=f"{media / 'photo.png'}@0:0.75", **CLIP)
    for video, _ in seen:
        assert torch.allclose(video.timesteps[0, :FRAME_TOKENS], 0.25 * video.sigma[0])


def test_several_pictures_and_what_competes(generate, seen, media):
    photo = media / "photo.png"
    made = generate(image=(photo, f"{photo}@5", f"{photo}@last"), **CLIP)
    assert seen[0][0].latents.shape[1] == 5 * FRAME_TOKENS
    assert made.notes == (
        "pictures at frames 0 and 5 are less than 8 frames apart, a latent frame, and compete",
    )


def test_short_clip_can_be_a_keyframe(generate, seen, media, tmp_path):
    path = media_samples.write_video(tmp_path / "short.mp4", num_frames=12)
    generate(image=f"{path}@4", **CLIP)
    video = seen[0][0]
    assert video.latents.shape[1] == (3 + 2) * FRAME_TOKENS  # 9 of the 12 frames make 2 latent frames
    starts = video.positions[0, 0, 3 * FRAME_TOKENS :: FRAME_TOKENS, 0]
    assert torch.allclose(starts, torch.tensor([4 / 24, 12 / 24]))


def test_recompression_degrades_the_picture_and_0_leaves_it(generate, seen, media):
    for crf in (0, 45, None):  # None: the model's own, which is 0 for the embedded one
        generate(image=media / "photo.png", image_crf=crf, num_inference_steps=1, **CLIP)
    exact, degraded, default = (video.latents[0, :FRAME_TOKENS] for video, _ in seen)
    assert torch.equal(exact, default)
    assert not torch.equal(exact, degraded)


def test_pictures_are_compressed_at_their_own_size_then_scaled_plainly(
    generate, seen, pipeline, media, tmp_path
):
    large = media_samples.write_picture(tmp_path / "large.png", height=99, width=151)
    how = {"image_crf": 33, "image_scaling": "plain", "num_inference_steps": 1}
    generate(image=large, **how, **CLIP)
    expected = cover_plainly(recompress(read_image(large), 33), (32, 32))
    latents = Encoders(pipeline.components).video(expected[None])
    given = seen[0][0].latents[0, :FRAME_TOKENS]
    assert torch.equal(given.flatten().sort().values, latents.flatten().sort().values)
    generate(image=large, **{**how, "image_scaling": None}, **CLIP)  # the embedded model's own: smooth
    assert not torch.equal(seen[1][0].latents[0, :FRAME_TOKENS], given)


def test_short_clips_are_not_compressed_again(generate, seen, media, tmp_path):
    path = media_samples.write_video(tmp_path / "short.mp4", num_frames=9)
    for crf in (0, 45):
        generate(image=path, image_crf=crf, num_inference_steps=1, **CLIP)
    assert torch.equal(*(video.latents[0, :FRAME_TOKENS] for video, _ in seen))


def test_picture_of_other_proportions_is_cut_or_padded(generate, seen, media, tmp_path):
    wide = media_samples.write_picture(tmp_path / "wide.png", height=16, width=64)
    for fit in ("cover", "pad"):
        generate(image=wide, image_fit=fit, num_inference_steps=1, **CLIP)
    cut, padded = (video.latents[0, :FRAME_TOKENS] for video, _ in seen)
    assert not torch.equal(cut, padded)


def test_any_size_shows_the_picture_where_the_clip_is_cut_out(generate, media):
    made = generate(image=media / "photo.png", num_frames=9, width=21, height=30)
    assert made.pixels.shape == (3, 9, 30, 21)


def test_edges_are_repeated_as_the_canvas_cuts():
    frames = torch.arange(2 * 3 * 4 * 3).view(2, 3, 4, 3).to(torch.uint8)
    larger = extend_to(frames, (8, 7))
    top, left = (8 - 3) // 2, (7 - 4) // 2
    assert torch.equal(larger[:, top : top + 3, left : left + 4], frames)
    assert torch.equal(larger[:, 0, left], frames[:, 0, 0])
    assert torch.equal(larger[:, -1, -1], frames[:, -1, -1])


def test_reference_clip_is_appended_with_its_factors(generate, seen, media):
    path = media / "clip.mp4"
    generate(reference_video=f"{path}:0.5", num_frames=17, width=32, height=32)
    video = seen[0][0]
    assert video.latents.shape[1] == 6 * FRAME_TOKENS
    assert torch.equal(video.positions[0, :, :12], video.positions[0, :, 12:])
    assert torch.allclose(video.timesteps[0, 12:], 0.5 * video.sigma[0])
    generate(reference_video=path, reference_downscale_factor=2, reference_temporal_factor=2, **CLIP)
    video = seen[-1][0]
    assert video.latents.shape[1] == 12 + 2 * 1  # 9 frames of 16 x 16
    assert video.positions[0, 1, -1].tolist() == [0.0, 32.0]  # a token spans twice its pixels
    assert torch.allclose(video.positions[0, 0, -1], torch.tensor([1 / 24, 17 / 24]))


def test_reference_is_followed(generate, media, tmp_path):
    other = media_samples.write_video(tmp_path / "other.mp4", num_frames=5, height=20, width=40)
    plain, one, two = (
        generate(reference_video=files, **CLIP).pixels for files in ((), media / "clip.mp4", other)
    )
    assert not torch.equal(plain, one)
    assert not torch.equal(one, two)


def test_voice_lies_before_the_clip(generate, seen, media):
    generate(reference_audio=media / "speech.wav", **CLIP)
    audio = seen[0][1]
    assert audio.latents.shape[1] == 18 + 25
    time = audio.positions[0, 0, 18:]
    assert time.max() == pytest.approx(-0.04)
    assert time.min() == pytest.approx(-0.04 - 0.97)
    assert audio.timesteps[0, 18:].count_nonzero() == 0


def test_voice_is_heard_for_ten_seconds_and_a_note_says_so(generate, seen, tmp_path):
    media_samples.write_speech(tmp_path / "long.wav", seconds=12.0)
    made = generate(reference_audio=tmp_path / "long.wav", **CLIP)
    assert seen[0][1].latents.shape[1] == 18 + 250
    assert made.notes == ("long.wav sounds for 12.0 s; its first 10.0 s are followed",)


@pytest.mark.parametrize(("num_frames", "num_tokens", "followed"), [(265, 276, "11.0"), (17, 18, "0.7")])
def test_sound_of_a_reference_clip_is_followed_as_long_as_its_picture(
    generate, seen, tmp_path, num_frames, num_tokens, followed
):
    path = media_samples.write_video(tmp_path / "talk.mp4", num_frames=288)  # 12 s
    small = {"width": 16, "height": 16, "num_inference_steps": 1, "num_frames": num_frames}
    made = generate(reference_video=path, reference_audio=path, **small)
    assert seen[0][1].latents.shape[1] == 2 * num_tokens
    expected = f"talk.mp4 sounds for 12.0 s; its first {followed} s are followed, as of its picture"
    assert made.notes[-1] == expected


def test_voice_that_is_heard_whole_is_not_noted(generate, media):
    assert generate(reference_audio=media / "speech.wav", **CLIP).notes == ()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"image": "missing.png"}, MediaError, "missing.png"),
        ({"image": "photo.png@2s"}, RequestError, "outside the clip of 17 frames"),
        ({"reference_video": "speech.wav"}, MediaError, "speech.wav"),
        ({"reference_audio": "photo.png"}, MediaError, "photo.png"),
        ({"reference_audio": "silent.mp4"}, MediaError, "silent.mp4 has no sound"),
    ],
)
def test_what_cannot_be_shown_is_named(generate, media, fields, error, message):
    with pytest.raises(error, match=message):
        generate(**{name: str(media / value) for name, value in fields.items()}, **CLIP)
