"""Retake, extend, join, inpaint, outpaint: what is not asked for stays as it was, bit for bit."""

from fractions import Fraction

import pytest
import torch

import media_samples
from soundstage.core.errors import MediaError, RequestError
from soundstage.media.image import write_image
from soundstage.media.mux import write_clip
from soundstage.media.probe import probe
from soundstage.media.video import read_clip


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A clip that fits no grid: 30 x 26, 61 frames at 23.976, mono tone at 44.1 kHz."""
    return media_samples.write_video(
        tmp_path_factory.mktemp("odd") / "odd.mp4",
        num_frames=61,
        height=26,
        width=30,
        frame_rate=Fraction(24000, 1001),
        sample_rate=44_100,
    )


def test_retake_changes_the_span_and_nothing_else(generate, odd, tmp_path):
    source = read_clip(odd)
    made = generate(video=odd, retake="1.1-1.5")
    first, last = 26, 36  # frames on the screen between 1.1 s and 1.5 s
    begin = round(made.start * source.frame_rate)
    inside = slice(first - begin, last - begin)
    expected = source.frames[begin : begin + made.pixels.shape[1]]
    assert torch.equal(made.frames[: inside.start], expected[: inside.start])
    assert torch.equal(made.frames[inside.stop :], expected[inside.stop :])
    assert all((made.frames[i] != expected[i]).any() for i in range(inside.start, inside.stop))

    written = read_clip(made.save(tmp_path / "made.mp4"))
    assert written.frames.shape == source.frames.shape
    assert torch.equal(written.frames[:first], source.frames[:first])
    assert torch.equal(written.frames[last:], source.frames[last:])
    start, end = (round(second * 44_100) for second in (1.1, 1.5))
    assert written.waveform.shape == source.waveform.shape
    # The written sound is lossless, but 24 bits are fewer than those of a float.
    assert (written.waveform[:, :start] - source.waveform[:, :start]).abs().max() < 2**-22
    assert (written.waveform[:, end:] - source.waveform[:, end:]).abs().max() < 2**-22
    assert (written.waveform[:, start:end] - source.waveform[:, start:end]).abs().max() > 1e-3


def test_retake_works_on_the_surroundings_only(generate, seen, tmp_path):
    path = media_samples.write_video(tmp_path / "long.mp4", num_frames=240)
    made = generate(video=path, retake="5-5.5")
    assert made.pixels.shape[1] <= 24 + 12 + 24 + 2 * 8
    assert seen[0][0].latents.shape[1] <= ((24 + 12 + 24) // 8 + 3) * 4
    assert 3.5 <= made.start <= 4


@pytest.mark.parametrize("keep", ["audio", "video"])
def test_retake_can_leave_one_stream_alone(generate, seen, odd, tmp_path, keep):
    source = read_clip(odd)
    made = generate(video=odd, retake="1.1-1.5", keep=keep)
    kept = seen[0][1 if keep == "audio" else 0]
    assert kept.sigma.count_nonzero() == 0
    written = read_clip(made.save(tmp_path / "made.mp4"))
    frames_stay = torch.equal(written.frames, source.frames)
    sound_stays = written.waveform.shape == source.waveform.shape and (
        (written.waveform - source.waveform).abs().max() < 2**-22
    )
    assert (frames_stay, sound_stays) == (keep == "video", keep == "audio")


def test_retake_of_a_silent_clip_stays_silent(generate, media, tmp_path):
    made = generate(video=media / "silent.mp4", retake="0.3-0.6")
    assert made.waveform is None
    assert "silent.mp4 has no sound and stays silent" in made.notes
    assert probe(made.save(tmp_path / "made.mp4")).audio is None
    with pytest.raises(MediaError, match="no sound to retake"):
        generate(video=media / "silent.mp4", retake="0.3-0.6", keep="video")


def test_retake_can_pass_through_a_picture(generate, seen, media):
    generate(video=media / "clip.mp4", retake="0.3-0.8", image=f"{media / 'photo.png'}@0.5s")
    assert torch.allclose(seen[0][0].positions[0, 0, -1], torch.tensor([12 / 24, 13 / 24]))


@pytest.mark.parametrize("span", ["0-0.4", "0.6-1.04", "0-1.04"])
def test_retake_may_touch_the_ends(generate, media, span):
    made = generate(video=media / "clip.mp4", retake=span)
    assert made.pixels.shape[1] == 25


def test_retake_outside_the_clip_is_refused(generate, media):
    with pytest.raises(RequestError, match=r"lasts 1\.04 s"):
        generate(video=media / "clip.mp4", retake="2-3")


def test_extension_follows_the_clip(generate, media, tmp_path):
    source = read_clip(media / "clip.mp4")
    made = generate(video=media / "clip.mp4", extend="forward=0.5s")
    assert made.pixels.shape[1] == 25 + 12
    assert torch.equal(made.frames[:25], source.frames)
    length = source.waveform.shape[1]
    assert torch.equal(made.waveform[:, :length], source.waveform)
    assert made.waveform.shape[1] == 37 * 2000
    assert (made.waveform[:, length] - made.waveform[:, length - 1]).abs().max() < 0.05
    assert read_clip(made.save(tmp_path / "made.mp4")).frames.shape[0] == 37


def test_extension_leads_to_the_clip(generate, media):
    source = read_clip(media / "clip.mp4")
    made = generate(video=media / "clip.mp4", extend="backward=0.5s")
    assert made.pixels.shape[1] == 12 + 25
    assert torch.equal(made.frames[12:], source.frames)
    assert torch.equal(made.waveform[:, 24_000:], source.waveform)
    assert (made.waveform[:, 24_000] - made.waveform[:, 23_999]).abs().max() < 0.05


def test_extension_can_end_on_a_picture(generate, seen, media):
    generate(video=media / "clip.mp4", extend="forward=0.5s", image=f"{media / 'photo.png'}@last")
    assert torch.allclose(seen[0][0].positions[0, 0, -1], torch.tensor([36 / 24, 37 / 24]))


def test_extension_goes_one_way_at_a_time(generate, media):
    with pytest.raises(RequestError, match="one direction at a time"):
        generate(video=media / "clip.mp4", extend=("forward=0.5s", "backward=0.5s"))


def test_bridge_joins_clips_of_different_kinds(generate, media, odd):
    first, second = read_clip(media / "clip.mp4"), read_clip(odd)
    made = generate(video=media / "clip.mp4", join=odd, num_frames=13)
    assert made.frame_rate == 24
    assert made.pixels.shape == (3, 25 + 13 + 61, 32, 32)
    assert torch.equal(made.frames[:25], first.frames)
    assert torch.equal(made.waveform[:, : first.waveform.shape[1]], first.waveform)
    assert second.frames.shape[1:3] == (26, 30)


def test_inpaint_changes_the_mask_and_nothing_else(generate, seen, media, tmp_path):
    source = read_clip(media / "clip.mp4")
    made = generate(video=media / "clip.mp4", mask=media / "mask.png")
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[16:, 16:] = True
    assert torch.equal(made.frames[:, ~inside], source.frames[:, ~inside])
    assert (made.frames[:, inside] != source.frames[:, inside]).float().mean() > 0.5
    assert torch.equal(made.waveform, source.waveform)
    assert seen[0][0].timesteps[0].view(4, 4).count_nonzero(dim=0).tolist() == [0, 0, 0, 4]
    assert seen[0][1].sigma.count_nonzero() == 0
    assert read_clip(made.save(tmp_path / "made.mp4")).waveform is not None


def test_mask_can_move(generate, seen, media, tmp_path):
    pixels = torch.zeros(25, 32, 32, 3, dtype=torch.uint8)
    pixels[9:, :16, :16] = 255
    write_clip(tmp_path / "mask.mp4", pixels, None, frame_rate=Fraction(24), crf=0)
    source = read_clip(media / "clip.mp4")
    made = generate(video=media / "clip.mp4", mask=tmp_path / "mask.mp4")
    assert torch.equal(made.frames[:9], source.frames[:9])
    assert torch.equal(made.frames[:, 16:], source.frames[:, 16:])
    painted = (seen[0][0].timesteps[0].view(4, 4) > 0).int().tolist()
    assert painted == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_mask_without_white_is_refused(generate, media, tmp_path):
    write_image(tmp_path / "black.png", torch.zeros(32, 32, 3, dtype=torch.uint8))
    with pytest.raises(MediaError, match="black everywhere"):
        generate(video=media / "clip.mp4", mask=tmp_path / "black.png")


@pytest.mark.parametrize(
    ("canvas", "size", "place"),
    [("50x40", (40, 50), (4, 9)), ("left=16,top=3", (35, 48), (3, 16))],
)
def test_outpaint_adds_a_margin_and_nothing_else(generate, media, canvas, size, place):
    source = read_clip(media / "clip.mp4")
    made = generate(video=media / "clip.mp4", outpaint=canvas)
    top, left = place
    assert made.pixels.shape == (3, 25, *size)
    assert torch.equal(made.frames[:, top : top + 32, left : left + 32], source.frames)
    assert torch.equal(made.waveform, source.waveform)


def test_edit_may_be_computed_at_another_size(generate, seen, media):
    source = read_clip(media / "clip.mp4")
    made = generate(video=media / "clip.mp4", mask=media / "mask.png", condition_size="16x16")
    assert seen[0][0].latents.shape[1] == 4
    assert made.pixels.shape == (3, 25, 32, 32)
    assert torch.equal(made.frames[:, :16], source.frames[:, :16])


def test_edit_of_something_else_is_refused(generate, media):
    for fields in ({"retake": "0-1"}, {"extend": "forward=1s"}, {"mask": media / "mask.png"}):
        with pytest.raises(MediaError, match="no video"):
            generate(video=media / "speech.wav", **fields)
