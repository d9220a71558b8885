"""Some frames of a video are replaced; every other one decodes to the same bits."""

import resource
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from media_files import clicks, levels, packets, planes, write_video
from soundstage.core.errors import MediaError, RequestError, ResourceError
from soundstage.media.audio import read_sound
from soundstage.media.mux import write_clip
from soundstage.media.probe import probe
from soundstage.media.splice import Stamp, decoding_times, plan_packets, splice_frames
from soundstage.media.video import Reading, read_clip

QUARTER_TURN = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
RATE = 24_000


def moving(count=48, height=32, width=48):
    """Noise that drifts: frames differ, and are predicted from each other."""
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(0, 256, (height // 4, (width + count) // 4 + 1, 3), generator=generator)
    canvas = canvas.repeat_interleave(4, 0).repeat_interleave(4, 1).to(torch.uint8)
    return [canvas[:height, i : i + width].contiguous().numpy() for i in range(count)]


def changed(source, out):
    """Which frames are shown otherwise than before; times must be the same."""
    before, after = planes(source), planes(out)
    assert [round(float(time), 2) for time, _ in after] == [round(float(time), 2) for time, _ in before]
    return [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a[1], b[1])]


def grey(span, info):
    return torch.full((len(span), info.height, info.width, 3), 100, dtype=torch.uint8)


X264 = {"g": "16", "keyint_min": "16", "sc_threshold": "0"}


@pytest.mark.parametrize("span", [range(20, 24), range(5), range(40, 48), range(15, 33), range(16, 17)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_only_the_replaced_frames_change(tmp_path, span, name):
    source = write_video(tmp_path / name, moving(), options=X264)
    out = tmp_path / "b.mp4"
    splice_frames(source, out, grey(span, probe(source).video), span=span)
    assert changed(source, out) == list(span)
    shown = read_clip(out).frames[span.start : span.stop].int()
    assert (shown - 100).abs().max() <= 4


def test_packets_outside_the_groups_concerned_are_copied(tmp_path):
    source = write_video(tmp_path / "a.mp4", moving(), options=X264)
    out = tmp_path / "b.mp4"
    splice_frames(source, out, grey(range(20, 24), probe(source).video), span=range(20, 24))
    before, after = packets(source), packets(out)
    assert [p[0] for p in after[:16]] == [p[0] for p in before[:16]]
    assert [p[0] for p in after[32:]] == [p[0] for p in before[32:]]


def test_frames_are_right_wherever_playing_starts(tmp_path):
    source = write_video(tmp_path / "a.mp4", moving(), options=X264)
    out = tmp_path / "b.mp4"
    splice_frames(source, out, grey(range(20, 24), probe(source).video), span=range(20, 24))
    whole = read_clip(out).frames
    for start in (3, 19, 20, 23, 24, 30, 33):
        part = read_clip(out, Reading(start=Fraction(start, 25), max_frames=4)).frames
        assert torch.equal(part, whole[start : start + 4])


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "options"), [
    ("a.mp4", "libx264", "yuv420p", {"bf": "0"}),
    ("a.mp4", "libx264", "yuv420p", {"bf": "3", "x264-params": "b-pyramid=normal:open-gop=1:keyint=12"}),
    ("a.mp4", "libx264", "yuv420p10le", {}),
    ("a.mp4", "libx264", "yuv444p", {}),
    ("a.mov", "libx264", "yuv422p", {}),
    ("a.mp4", "libx264", "yuvj420p", {}),
    ("a.mp4", "mpeg4", "yuv420p", {}),
    ("a.webm", "libvpx-vp9", "yuv420p", {}),
    ("a.mp4", "libx265", "yuv420p", {"x265-params": "log-level=error"}),
    ("a.mov", "mjpeg", "yuvj420p", {}),
    ("a.ts", "libx264", "yuv420p", {}),
])  # fmt: skip
def test_other_codecs_and_formats_are_kept_bit_for_bit_too(tmp_path, name, codec, pix_fmt, options):
    source = write_video(tmp_path / name, moving(24, 64, 64), codec=codec, pix_fmt=pix_fmt, options=options)
    out = tmp_path / "b.mp4"
    span = range(9, 12)
    splice_frames(source, out, grey(span, probe(source).video), span=span, sound=None)
    before, after = planes(source), planes(out)
    assert len(after) == len(before) == 24
    same = [np.array_equal(a[1], b[1]) for a, b in zip(before, after, strict=True)]
    assert [i for i, equal in enumerate(same) if not equal] == list(span)


def test_turned_videos_take_upright_frames(tmp_path):
    source = write_video(tmp_path / "a.mp4", moving(12), matrix=QUARTER_TURN)
    for name, kind in (("b.mp4", source), ("c.mp4", None)):
        if kind is None:  # the same as MPEG-4, which is coded anew
            kind = write_video(tmp_path / "m.mp4", moving(12), codec="mpeg4", matrix=QUARTER_TURN)
        info = probe(kind).video
        assert info.size == (48, 32)
        new = grey(range(3, 5), info)
        new[:, :24] = 200  # the upper half
        splice_frames(kind, tmp_path / name, new, span=range(3, 5))
        frames = read_clip(tmp_path / name).frames.int()
        assert frames.shape[1:] == (48, 32, 3)
        assert (frames[3, :20] - 200).abs().max() <= 6
        assert (frames[3, 28:] - 100).abs().max() <= 6


def test_variable_rates_keep_their_times(tmp_path):
    ticks = [0, 1, 2, 10, 11, 30, 31, 40]
    source = write_video(tmp_path / "a.mp4", moving(8), ticks=ticks)
    splice_frames(source, tmp_path / "b.mp4", grey(range(3, 5), probe(source).video), span=range(3, 5))
    assert [t for t, _ in planes(tmp_path / "b.mp4")] == [t for t, _ in planes(source)]
    assert changed(source, tmp_path / "b.mp4") == [3, 4]


def test_sound_is_kept_replaced_or_left_out(tmp_path):
    source = tmp_path / "a.mp4"
    waveform = clicks(RATE * 2, RATE)
    write_clip(source, levels(48), waveform, frame_rate=Fraction(24), sample_rate=RATE)
    new = grey(range(10, 12), probe(source).video)
    splice_frames(source, tmp_path / "keep.mp4", new, span=range(10, 12))
    assert torch.equal(read_sound(tmp_path / "keep.mp4").waveform, read_sound(source).waveform)
    other = read_sound(source).waveform
    splice_frames(source, tmp_path / "new.mp4", new, span=range(10, 12), sound=other, sample_rate=RATE)
    heard = read_sound(tmp_path / "new.mp4").waveform
    assert heard.shape == other.shape
    assert (heard - other.clamp(-1, 1)).abs().max() <= 2**-23  # every sample, to 24 bits
    splice_frames(source, tmp_path / "none.mp4", new, span=range(10, 12), sound=None)
    assert read_sound(tmp_path / "none.mp4", optional=True) is None
    assert changed(source, tmp_path / "new.mp4") == [10, 11]


def test_chunks_are_taken_as_one_tensor(tmp_path):
    source = write_video(tmp_path / "a.mp4", moving(12))
    new = levels(4, 32, 48)
    splice_frames(source, tmp_path / "b.mp4", new, span=range(3, 7))
    splice_frames(source, tmp_path / "c.mp4", (new[i : i + 3] for i in (0, 3)), span=range(3, 7))
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()


def test_what_cannot_be_is_named_and_leaves_nothing(tmp_path):
    source = write_video(tmp_path / "a.mp4", moving(12))
    hdr = write_video(tmp_path / "h.mkv", moving(3), pix_fmt="yuv420p10le", colours=(9, 16, 9))
    there = sorted(tmp_path.iterdir())
    new, out = levels(2, 32, 48), tmp_path / "b.mp4"
    with pytest.raises(RequestError, match=r"frames 11 to 12 are not in .*; it has 0 to 11"):
        splice_frames(source, out, new, span=range(11, 13))
    with pytest.raises(MediaError, match="2 new frames are given for the 3 frames 1 to 3"):
        splice_frames(source, out, new, span=range(1, 4))
    with pytest.raises(MediaError, match="2 new frames are given for the 1 frames 1 to 1"):
        splice_frames(source, out, new, span=range(1, 2))
    with pytest.raises(MediaError, match="a new frame is 16x16, the video is 48x32"):
        splice_frames(source, out, levels(2), span=range(1, 3))
    with pytest.raises(MediaError, match="is HDR"):
        splice_frames(hdr, out, new, span=range(1, 3))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(ResourceError, match="no space left"):
            splice_frames(source, out, new, span=range(1, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def interrupted():
        yield new[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        splice_frames(source, out, interrupted(), span=range(1, 3))
    assert sorted(tmp_path.iterdir()) == there


@given(st.permutations(range(12)), st.integers(0, 11), st.integers(0, 3))
def test_the_plan_cuts_only_where_nothing_reaches_across(order, first, more):
    """Whatever the order of coding: all that is copied before is shown before, and the same after."""
    last = min(first + more, 11)
    stamps = [Stamp(pts, True, pts % 4 == 0) for pts in order]
    begin, resume = plan_packets(stamps, first, last)
    copied_before, copied_after = order[:begin], order[resume:]
    assert begin <= resume
    assert sorted(copied_before) == list(range(begin))
    assert all(pts < first for pts in copied_before)
    assert all(pts > last for pts in copied_after)
    assert sorted(copied_after) == list(range(resume, 12))
    assert not copied_after or copied_after[0] % 4 == 0


def test_the_file_is_one_plain_track(tmp_path):
    """No trick in the container: one sample description with all parameter sets, tagged avc1."""
    source = write_video(tmp_path / "a.mp4", moving(24), options=X264)
    splice_frames(source, tmp_path / "b.mp4", grey(range(4, 6), probe(source).video), span=range(4, 6))
    data = (tmp_path / "b.mp4").read_bytes()
    assert data.count(b"avcC") == 1
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "avc1"
        assert len(container.streams) == 1


@given(st.permutations(range(10)))
def test_made_up_decoding_times_are_in_order_and_never_late(pts):
    times = decoding_times(list(pts))
    assert all(a < b for a, b in pairwise(times))
    assert all(due <= shown for due, shown in zip(times, pts, strict=True))
