import torch

from soundstage.evaluation.picture import FRAME_HEIGHT, IMPACT, MARK_HEIGHT, NUM_FRAMES, ONSET, overview, png
from soundstage.media.image import read_image


def test_png_holds_the_picture_exactly(tmp_path):
    picture = torch.randint(0, 256, (11, 17, 3), dtype=torch.uint8)
    path = tmp_path / "picture.png"
    path.write_bytes(png(picture))
    assert (read_image(path) == picture).all()


def test_overview_marks_each_impact_and_onset(seen):
    scene, clip = seen(9)
    picture = overview(clip, {"kind": "bounce"})
    width = NUM_FRAMES * FRAME_HEIGHT
    assert picture.shape[1] == width
    seen_marks = picture[FRAME_HEIGHT + MARK_HEIGHT // 2]
    heard_marks = picture[FRAME_HEIGHT + MARK_HEIGHT + MARK_HEIGHT // 2]
    for marks, colour in ((seen_marks, IMPACT), (heard_marks, ONSET)):
        columns = (marks == torch.tensor(colour)).all(-1).nonzero()[:, 0]
        for event in scene.events_before(1.9):
            assert (columns - event.time / clip.duration * width).abs().min() < 6


def test_clip_without_sound_has_an_overview_too(as_observation):
    assert overview(as_observation(torch.zeros(3, 3, 16, 24), None), {}).dtype == torch.uint8
