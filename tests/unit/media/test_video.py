from fractions import Fraction

import av
import pytest
import torch

from soundstage.core.errors import MediaError
from soundstage.media.mux import write_clip
from soundstage.media.video import read_clip, to_frames, to_pixels


def test_every_level_survives_the_way_to_pixels_and_back():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    pixels = to_pixels(frames)
    assert pixels.dtype == torch.float32
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert torch.equal(to_frames(pixels), frames)


def test_pixels_round_to_the_nearest_level_and_are_clipped():
    pixels = torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 1, 5).expand(3, 1, 1, 5)
    assert to_frames(pixels)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_half_precision_pixels_are_accepted():
    assert to_frames(torch.ones(3, 1, 2, 2, dtype=torch.bfloat16)).min() == 255


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_pixels_that_are_not_finite_are_refused(bad):
    with pytest.raises(MediaError, match="not finite"):
        to_frames(torch.full((3, 1, 2, 2), bad))


def test_frame_order_and_times_survive_the_file(tmp_path):
    path = tmp_path / "steps.mp4"
    levels = torch.tensor([0, 250, 20, 230, 40, 210, 60, 190, 80], dtype=torch.uint8)
    frames = levels[:, None, None, None].expand(9, 32, 32, 3).contiguous()
    write_clip(path, frames, None, frame_rate=Fraction(30000, 1001))
    clip = read_clip(path)
    assert (clip.frames.float().mean((1, 2, 3)) - levels.float()).abs().max() < 3
    assert clip.times[8] == pytest.approx(8 * 1001 / 30000, abs=1e-6)
    assert clip.frame_rate == Fraction(30000, 1001)


def test_frames_of_uneven_spacing_keep_their_times(tmp_path):
    path = tmp_path / "uneven.mp4"
    ticks = [0, 2, 3, 7]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for tick in ticks:
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts, frame.time_base = tick, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert (read_clip(path).times * 24).tolist() == pytest.approx(ticks, abs=1e-3)


def test_sound_without_picture_is_not_a_clip(tmp_path):
    from soundstage.media.audio import write_wav

    path = tmp_path / "sound.wav"
    write_wav(path, torch.zeros(2, 100), sample_rate=8000)
    with pytest.raises(MediaError, match="no video stream"):
        read_clip(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MediaError, match=r"cannot read .*none\.mp4: No such file"):
        read_clip(tmp_path / "none.mp4")
