"""Pictures of every kind are read as a viewer sees them, at the size and rate that are asked for."""

from fractions import Fraction

import av
import pytest
import torch

from media_files import clicks, corners, lag, levels, quadrants, write_video
from soundstage.core.errors import MediaError, RequestError
from soundstage.media.mux import write_clip
from soundstage.media.probe import probe
from soundstage.media.video import Reading, read_clip, stream_frames

# Display matrices: fixed point, rows of three. The picture is stored so that turning it gives `quadrants`.
ONE = 1 << 16
TURNS = {
    "none": ((ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), lambda p: p),
    "quarter clockwise": ((0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30), lambda p: torch.rot90(p, 1)),
    "half": ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30), lambda p: torch.rot90(p, 2)),
    "quarter counter-clockwise": ((0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), lambda p: torch.rot90(p, -1)),
    "mirrored": ((-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30), lambda p: p.flip(1)),
    "mirrored and turned": ((0, ONE, 0, ONE, 0, 0, 0, 0, 1 << 30), lambda p: p.transpose(0, 1)),
}


def shown_levels(clip):
    """Which of the frames of `levels` each frame is."""
    return ((clip.frames.float().mean((1, 2, 3)) - 5) / 10).round().int().tolist()


@pytest.mark.parametrize("name", TURNS)
def test_rotation_is_applied(tmp_path, name):
    matrix, store = TURNS[name]
    stored = store(quadrants()).contiguous().numpy()
    path = write_video(tmp_path / "a.mp4", [stored] * 3, matrix=matrix, options={"crf": "1"})
    clip = read_clip(path)
    assert clip.frames.shape[1:] == (32, 48, 3)
    assert probe(path).video.size == (32, 48)
    assert (corners(clip.frames[0]) - corners(quadrants())).abs().max() < 12
    small = read_clip(path, Reading(size=(16, 24))).frames
    assert small.shape == (3, 16, 24, 3)
    assert (corners(small[0]) - corners(quadrants())).abs().max() < 12


def test_pixels_that_are_not_square_become_square(tmp_path):
    path = write_video(tmp_path / "a.mp4", [quadrants(32, 48).numpy()] * 3, aspect=Fraction(4, 3))
    assert probe(path).video.size == (32, 64)
    assert read_clip(path).frames.shape == (3, 32, 64, 3)


@pytest.mark.parametrize(("height", "width"), [(15, 17), (33, 16)])
def test_odd_sizes_are_read(tmp_path, height, width):
    frames = levels(3, height, width).numpy()
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="yuv420p")
    assert read_clip(path).frames.shape == (3, height, width, 3)
    assert read_clip(path, Reading(size=(8, 9), fit="pad")).frames.shape == (3, 8, 9, 3)


def test_transparency_is_laid_over_black(tmp_path):
    picture = torch.full((16, 16, 4), 200, dtype=torch.uint8)
    picture[:, :8, 3], picture[:, 8:, 3] = 255, 0
    path = write_video(
        tmp_path / "a.mov", [picture.numpy()] * 2, codec="qtrle", pix_fmt="argb", array_format="rgba"
    )
    assert probe(path).video.has_alpha
    frame = read_clip(path).frames[0].int()
    assert (frame[:, :8] - 200).abs().max() <= 1
    assert frame[:, 8:].max() == 0


@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p10le"), ("prores_ks", "yuv422p10le")])
def test_ten_bits_become_eight(tmp_path, codec, pix_fmt):
    path = write_video(tmp_path / "a.mov", [quadrants().numpy()] * 3, codec=codec, pix_fmt=pix_fmt)
    info = probe(path).video
    assert (info.bit_depth, info.transfer) == (10, "sdr")
    assert (corners(read_clip(path).frames[0]) - corners(quadrants())).abs().max() < 12


@pytest.mark.parametrize(("code", "transfer", "white"), [(16, "pq", 0.581), (18, "hlg", 0.75)])
def test_hdr_is_brought_to_ordinary_range(tmp_path, code, transfer, white):
    """A white page is grey in the file (58 % in PQ) and must come back almost white."""
    grey = torch.full((16, 16, 3), round(white * 255), dtype=torch.uint8).numpy()
    path = write_video(
        tmp_path / "a.mkv", [grey] * 2, pix_fmt="yuv420p10le", colours=(9, code, 9), options={"crf": "1"}
    )
    assert probe(path).video.transfer == transfer
    assert 228 <= read_clip(path).frames.float().mean() <= 250


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_rates_and_counts_are_exact_in_every_container(tmp_path, rate, name):
    """MKV stores whole milliseconds and no number of frames; AVI stores no times."""
    path = write_video(
        tmp_path / name, levels(20).numpy(), rate=rate, options={"bf": "0"} if "avi" in name else {}
    )
    info = probe(path).video
    assert (info.frame_rate, info.num_frames, info.is_variable) == (rate, 20, False)
    assert info.duration == 20 / rate
    assert len(read_clip(path, Reading(frame_rate=rate)).frames) == 20


TICKS = [0, 1, 2, 10, 11, 30, 31, 40]  # of 1/25 s: a screen recording, still most of the time


def test_variable_rate_is_resampled_by_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", levels(8).numpy(), ticks=TICKS, rate=Fraction(25))
    info = probe(path).video
    assert info.is_variable
    assert info.num_frames == 8
    clip = read_clip(path, Reading(frame_rate=Fraction(25)))
    expected = [max(i for i, tick in enumerate(TICKS) if tick <= step) for step in range(41)]
    assert shown_levels(clip)[:41] == expected
    assert clip.times.tolist() == pytest.approx([i / 25 for i in range(len(clip.times))])
    own = read_clip(path)
    assert (own.times * 25).round().int().tolist() == TICKS


@pytest.mark.parametrize(("target", "expected"), [
    (Fraction(12), [0, 2, 4, 6, 8, 10]), (Fraction(48), [i // 2 for i in range(24)]),
    (Fraction(24), list(range(12))), (Fraction(24000, 1001), list(range(12))),
])  # fmt: skip
def test_a_constant_rate_becomes_another(tmp_path, target, expected):
    path = write_video(tmp_path / "a.mp4", levels(12).numpy(), rate=Fraction(24))
    shown = shown_levels(read_clip(path, Reading(frame_rate=target)))
    assert len(shown) == len(expected)
    # Halfway between two frames either is as near.
    assert all(abs(a - b) <= (target > 24) for a, b in zip(shown, expected, strict=True))


@pytest.mark.parametrize("gop", [1, 5, 250])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_span_is_the_same_part_of_the_whole(tmp_path, gop, name):
    frames = levels(24).numpy()
    path = write_video(tmp_path / name, frames, rate=Fraction(24), options={"g": str(gop), "crf": "5"})
    whole = read_clip(path).frames
    for start in (0, 7, 11, 23):
        part = read_clip(path, Reading(start=Fraction(start, 24), duration=Fraction(6, 24)))
        assert torch.equal(part.frames, whole[start : start + 6])
        steps = read_clip(path, Reading(start=start / 24, max_frames=3, frame_rate=Fraction(24)))
        assert torch.equal(steps.frames, whole[start : start + 3])


def test_the_sound_of_a_span_goes_with_it(tmp_path):
    rate = 24_000
    waveform = clicks(rate * 2, rate)
    path = tmp_path / "a.mp4"
    write_clip(path, levels(48), waveform, frame_rate=Fraction(24), sample_rate=rate)
    clip = read_clip(path, Reading(start=0.75, duration=1, frame_rate=Fraction(24), size=(8, 8)))
    assert clip.waveform.shape == (2, rate)
    assert abs(lag(waveform[:, 18_000 : 18_000 + rate], clip.waveform)) <= 1


def test_streaming_gives_the_same_frames_and_holds_few(tmp_path):
    path = write_video(tmp_path / "a.mp4", levels(21).numpy())
    chunks = list(stream_frames(path, Reading(size=(8, 8))))
    assert [len(chunk) for chunk in chunks] == [8, 8, 5]
    assert torch.equal(torch.cat(chunks), read_clip(path, Reading(size=(8, 8))).frames)


def test_edit_lists_trim_the_picture(tmp_path):
    """A phone cuts the beginning of a video by hiding it: packets before second 0 are there but not shown."""
    source = write_video(tmp_path / "a.mp4", levels(24).numpy(), rate=Fraction(24), options={"bf": "0"})
    trimmed = trim(source, tmp_path / "b.mp4", 7)
    info = probe(trimmed).video
    clip = read_clip(trimmed)
    assert shown_levels(clip) == list(range(7, 24))
    assert clip.times[0] == 0
    assert info.num_frames == 17
    assert shown_levels(read_clip(trimmed, Reading(start=Fraction(3, 24), max_frames=2))) == [10, 11]


def trim(source, target, frames):
    """Copy packets so that the first `frames` lie before second 0."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream, opaque=True)
        for packet in old.demux(stream):
            if packet.size:
                shift = round(frames / 24 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                new.mux(packet)
    return target


def test_wrong_readings_and_files_are_named(tmp_path):
    for wrong in ({"start": -1}, {"duration": 0}, {"max_frames": 0}, {"frame_rate": Fraction(0)}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            Reading(**wrong)
    path = write_video(tmp_path / "a.mp4", levels(5).numpy())
    with pytest.raises(MediaError, match="no frame after second 9"):
        read_clip(path, Reading(start=9))
    data = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cannot read .*cut\.mp4"):
        probe(tmp_path / "cut.mp4")
