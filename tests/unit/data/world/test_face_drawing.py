"""Pictures of talking faces: the mouth opens exactly as far as the timeline says, and only it moves."""

import random
from dataclasses import replace

import pytest
import torch

from soundstage.data.world.face import FACE_COLOURS, sample_face
from soundstage.data.world.face_drawing import INSIDE, MOUTH_Y, render_faces, render_places
from soundstage.data.world.face_speech import spoken

SECONDS = 49 / 24
FACES = [sample_face(random.Random(seed), split="train", duration=SECONDS, aspect=1.0) for seed in range(12)]


def draw(faces, size=64, width=None, num_frames=49):
    return render_faces(faces, num_frames=num_frames, height=size, width=width or size, frame_rate=24)


def saying(*texts, **changes):
    """A face that looks the same whatever it says."""
    said = spoken(texts, start=0.2, pace=[0.25] * len(texts), gaps=[0.06] * len(texts))
    plain = {"blinks": (), "style": "bald", "colour": "yellow", "x": 0.5, "scale": 1.0, "smile": 0.0}
    return replace(FACES[0], utterance=said, **{**plain, **changes})


def dark(frame, face):
    """Height of the mouth's inside in pixels, counted by how dark they are, in its middle."""
    size = frame.shape[-2]
    top = round((face.y + (MOUTH_Y - 0.06) * face.scale) * size)
    luminance = (frame.mean(0) + 1) / 2
    left, right = (round((face.x + side * 0.03) * size) for side in (-1, 1))
    window = luminance[top : round((face.y + 0.31) * size), left:right]
    return float(((0.35 - window) / 0.25).clamp(0, 1).sum(0).mean())


def test_pixels_are_finite_and_in_range():
    pixels = draw(FACES)
    assert pixels.shape == (12, 3, 49, 64, 64)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert pixels.isfinite().all()


def test_only_mouth_and_eyes_move():
    pixels = draw(FACES)
    moving = (pixels - pixels[:, :, :1]).abs().amax((1, 2)) > 1e-6  # (b, h, w)
    assert (moving.float().mean((1, 2)) < 0.16).all()
    assert (moving.sum((1, 2)) > 20).all()


@pytest.mark.parametrize("vowel", ["a", "e", "i", "o", "u"])
def test_mouth_is_as_open_as_the_timeline_says(vowel):
    face = saying("b" + vowel)
    pixels = draw([face], size=128)[0]
    times = [frame / 24 for frame in range(49)]
    apertures = torch.tensor([face.aperture(time) for time in times])
    heights = torch.tensor([dark(pixels[:, frame], face) for frame in range(49)])
    assert torch.corrcoef(torch.stack((apertures, heights)))[0, 1] > 0.97


def test_a_opens_more_than_e_more_than_i():
    areas = []
    for vowel in "aei":
        face = saying("b" + vowel)
        areas.append(dark(draw([face])[0, :, round((0.2 + 0.095 + 0.12) * 24)], face))
    assert areas[0] > 1.3 * areas[1] > 1.3 * areas[2]


def test_rounded_lips_are_narrower():
    widths = []
    for vowel in "iu":
        face = saying("d" + vowel)
        frame = draw([face], size=128)[0, :, round((0.2 + 0.085 + 0.12) * 24)]
        row = frame[:, round((face.y + MOUTH_Y) * 128)]
        skin = frame[:, round((face.y + 0.09) * 128), 64]
        widths.append(int(((row - skin[:, None]).abs().sum(0)[40:88] > 0.5).sum()))
    assert widths[0] > 1.7 * widths[1]


def test_mouth_at_rest_is_fourteen_pixels_wide_in_a_small_picture():
    face = saying("ba")
    frame = draw([face])[0, :, 0]
    skin = frame[:, round((face.y + 0.09) * 64), 32]
    rows = [frame[:, row] for row in range(round((face.y + 0.12) * 64), round((face.y + 0.18) * 64))]
    wide = max(int(((row - skin[:, None]).abs().sum(0)[16:48] > 0.4).sum()) for row in rows)
    assert wide >= 13


def test_labials_show_closed_lips_for_a_moment():
    face = saying("ma", "ba", "pa")
    pixels = draw([face], size=128)[0]
    for one in face.utterance.syllables:
        frame = round((one.release - 0.03) * 24)
        assert dark(pixels[:, frame], face) < 0.1 * dark(pixels[:, round((one.release + 0.12) * 24)], face)


def test_teeth_show_in_i_but_not_in_u():
    brightest = {}
    for vowel in "iu":
        face = saying("d" + vowel, colour="blue")
        frame = draw([face], size=128)[0, :, round((0.2 + 0.085 + 0.12) * 24)]
        middle = frame[:, round((face.y + 0.12) * 128) : round((face.y + 0.19) * 128), 60:68]
        brightest[vowel] = float(middle.amin(0).max())
    assert brightest["i"] > 0.7
    assert brightest["u"] < 0.4


def test_a_blink_closes_the_eyes_and_opens_them_again():
    face = replace(saying("ba"), blinks=(1.5,))
    pixels = draw([face])[0]
    rows = slice(round((face.y - 0.10) * 64), round((face.y - 0.01) * 64))
    white = (pixels[:, :, rows].amin(0) > 0.85).sum((1, 2))  # bright pixels per frame
    assert white[36] == 0
    assert white[0] == white[30] == white[42] > 8


@pytest.mark.parametrize("colour", list(FACE_COLOURS))
def test_cheeks_have_the_colour_of_the_caption(colour):
    face = saying("ba", colour=colour)
    frame = (draw([face])[0, :, 0] + 1) / 2
    cheek = frame[:, round((face.y + 0.06) * 64), round((0.5 - 0.14) * 64)]
    wanted = {name: torch.tensor(rgb) / 255 for name, rgb in FACE_COLOURS.items()}
    nearest = min(wanted, key=lambda name: float((wanted[name] - cheek).abs().sum()))
    assert nearest == colour


def test_mouth_stands_out_from_every_face():
    for colour in FACE_COLOURS:
        face = saying("ba", colour=colour)
        closed, opened = draw([face])[0][:, [0, round((0.2 + 0.095 + 0.12) * 24)]].mean(0)
        row = round((face.y + MOUTH_Y + 0.03) * 64)
        assert closed[row, 32] - opened[row, 32] > 0.5


def test_mirrored_face_is_the_mirrored_picture():
    face = replace(FACES[1], x=0.34)
    there, back = draw([face])[0], draw([face.mirrored()])[0]
    assert torch.allclose(there.flip(-1), back, atol=2e-3)


def test_a_clip_does_not_depend_on_its_batch():
    together = draw(FACES[:4])
    for number in range(4):
        assert torch.equal(draw(FACES[number : number + 1])[0], together[number])


def test_place_without_its_face_is_still_and_has_no_mouth():
    options = {"num_frames": 5, "height": 64, "width": 64, "frame_rate": 24}
    empty = render_places(FACES[:3], **options)
    assert torch.equal(empty[:, :, 0], empty[:, :, 4])
    seen = render_faces(FACES[:3], **options)
    assert torch.equal(empty[..., 0, 0], seen[..., 0, 0])
    mouth = torch.tensor(INSIDE) / 127.5 - 1
    assert not ((empty[:, :, 0] - mouth[:, None, None]).abs().sum(1) < 0.1).all()


@pytest.mark.parametrize("size", [(32, 32), (48, 96), (128, 104)])
def test_pictures_of_other_sizes(size):
    height, width = size
    face = sample_face(random.Random(3), split="train", duration=1.0, aspect=width / height)
    pixels = draw([face], height, width, num_frames=25)
    assert pixels.shape == (1, 3, 25, height, width)
    assert pixels.isfinite().all()
