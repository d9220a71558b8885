"""A new sound under a picture that is not touched."""

import resource
from fractions import Fraction

import av
import pytest
import torch

from media_files import clicks, corners, lag, levels, packets, planes, quadrants, write_sound, write_video
from soundstage.core.errors import MediaError, RequestError, ResourceError
from soundstage.media.audio import read_sound
from soundstage.media.mux import read_metadata, write_clip
from soundstage.media.probe import probe
from soundstage.media.remux import replace_sound
from soundstage.media.tracks import OriginalSound
from soundstage.media.video import read_clip

RATE = 24_000
QUARTER_TURN = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(("name", "codec", "out"), [
    ("a.mp4", "libx264", "b.mp4"), ("a.mov", "libx264", "b.mp4"), ("a.mkv", "libx264", "b.mp4"),
    ("a.mp4", "libx264", "b.mkv"), ("a.webm", "libvpx-vp9", "b.mp4"), ("a.webm", "libvpx", "b.mkv"),
    ("a.mp4", "libx265", "b.mp4"), ("a.mkv", "libsvtav1", "b.mp4"), ("a.mov", "prores_ks", "b.mov"),
])  # fmt: skip
def test_packets_are_the_same_and_the_sound_is_in_step(tmp_path, name, codec, out):
    options = (
        {"preset": "8"} if "svt" in codec else {"x265-params": "log-level=error"} if "265" in codec else {}
    )
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    frames = [quadrants(64, 64).numpy()] * 25
    source = write_video(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt, options=options)
    waveform = clicks(RATE, RATE)
    replace_sound(source, waveform, tmp_path / out, sample_rate=RATE, metadata={"seed": 1})
    before, after = packets(source), packets(tmp_path / out)
    assert [data for data, _, _ in after] == [data for data, _, _ in before]
    assert [key for _, _, key in after] == [key for _, _, key in before]
    tick = Fraction(1, 1000) if "mkv" in out or "mkv" in name or "webm" in name else 0
    assert all(abs(a[1] - b[1]) <= tick for a, b in zip(after, before, strict=True))
    heard = read_sound(tmp_path / out)
    assert abs(lag(waveform, heard.waveform)) <= (RATE // 1000 if "mkv" in out else 0)
    assert read_metadata(tmp_path / out) == {"seed": 1}


def test_rotation_pixel_shape_and_tag_are_kept(tmp_path):
    frames = [quadrants(32, 48).numpy()] * 5
    source = write_video(tmp_path / "a.mp4", frames, matrix=QUARTER_TURN, aspect=Fraction(4, 3))
    replace_sound(source, torch.zeros(2, 9), tmp_path / "b.mp4", sample_rate=RATE)
    assert probe(tmp_path / "b.mp4").video == probe(source).video
    assert torch.equal(read_clip(tmp_path / "b.mp4").frames, read_clip(source).frames)


@pytest.mark.parametrize("tag", ["hvc1", "hev1"])
def test_the_codec_tag_is_kept(tmp_path, tag):
    source = tmp_path / "a.mp4"
    write_video(
        source, [quadrants(64, 64).numpy()] * 3, codec="libx265", options={"x265-params": "log-level=error"}
    )
    if tag == "hvc1":  # what Apple's players ask for; FFmpeg writes the other
        data = source.read_bytes()
        assert data.count(b"hev1") >= 1
        source.write_bytes(data.replace(b"hev1", b"hvc1"))
    replace_sound(source, torch.zeros(2, 9), tmp_path / "b.mp4", sample_rate=RATE)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == tag


@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_the_sound_is_cut_or_padded_to_the_picture(tmp_path, seconds):
    source = write_video(tmp_path / "a.mp4", levels(24).numpy(), rate=Fraction(24))
    waveform = torch.full((2, round(seconds * RATE)), 0.25)
    replace_sound(source, waveform, tmp_path / "b.mp4", sample_rate=RATE)
    assert read_sound(tmp_path / "b.mp4").waveform.shape == (2, RATE)


def test_variable_rates_keep_their_times(tmp_path):
    ticks = [0, 1, 2, 10, 11, 30]
    source = write_video(tmp_path / "a.mp4", levels(6).numpy(), ticks=ticks)
    replace_sound(source, torch.zeros(2, 9), tmp_path / "b.mp4", sample_rate=RATE)
    assert [time for time, _ in planes(tmp_path / "b.mp4")] == [time for time, _ in planes(source)]


def test_what_cannot_be_is_named_and_leaves_nothing(tmp_path):
    vp8 = write_video(tmp_path / "a.webm", levels(3).numpy(), codec="libvpx")
    sound = write_sound(
        tmp_path / "a.flac", (clicks(800, 8000).numpy() * 32767).astype("int16").T.reshape(1, -1).copy(),
        codec="flac", sample_format="s16", sample_rate=8000, layout="stereo",
    )  # fmt: skip
    there = sorted(tmp_path.iterdir())
    silence = torch.zeros(2, 9)
    with pytest.raises(MediaError, match=r"b\.mp4 cannot hold vp8; name the output b\.mkv"):
        replace_sound(vp8, silence, tmp_path / "b.mp4", sample_rate=RATE)
    with pytest.raises(MediaError, match=r"a\.flac has no picture"):
        replace_sound(sound, silence, tmp_path / "b.mp4", sample_rate=RATE)
    with pytest.raises(RequestError, match=r"ends in none of .*b\.mp4 would do"):
        replace_sound(vp8, silence, tmp_path / "b.txt", sample_rate=RATE)
    with pytest.raises(RequestError, match="nearest is 22050"):
        replace_sound(vp8, silence, tmp_path / "b.mkv", sample_rate=22_000)
    with pytest.raises(MediaError, match=r"cannot read .*none\.mp4"):
        replace_sound(tmp_path / "none.mp4", silence, tmp_path / "b.mp4", sample_rate=RATE)
    mkv = tmp_path / "same.mkv"
    mkv.write_bytes(vp8.read_bytes())
    with pytest.raises(RequestError, match="is the source itself"):
        replace_sound(mkv, silence, mkv, sample_rate=RATE)
    mkv.unlink()
    assert sorted(tmp_path.iterdir()) == there


def test_full_disk_and_interruption_leave_nothing(tmp_path, monkeypatch):
    noise = torch.randint(0, 256, (25, 64, 64, 3), dtype=torch.uint8).numpy()
    source = write_video(tmp_path / "a.mp4", noise)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(ResourceError, match="no space left"):
            replace_sound(source, torch.randn(2, RATE) / 4, tmp_path / "b.mp4", sample_rate=RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("soundstage.media.tracks.SoundTrack.finish", stop)
    with pytest.raises(KeyboardInterrupt):
        replace_sound(source, torch.zeros(2, 9), tmp_path / "b.mp4", sample_rate=RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_lossless_sound_comes_back_to_24_bits(tmp_path):
    waveform = (torch.rand(2, 44_100, generator=torch.Generator().manual_seed(0)) * 2 - 1).contiguous()
    path = tmp_path / "a.mp4"
    write_clip(
        path, levels(24), waveform, frame_rate=Fraction(24), sample_rate=44_100, sound_codec="alac", crf=30
    )
    heard = read_sound(path)
    assert heard.sample_rate == 44_100
    assert heard.waveform.shape == waveform.shape
    assert (heard.waveform - waveform).abs().max() <= 2**-23


@pytest.fixture
def song(tmp_path):
    rate = 48_000
    waveform = clicks(rate * 2, rate)
    path = tmp_path / "song.m4a"
    write_sound(
        path,
        waveform.numpy(),
        codec="aac",
        sample_format="fltp",
        sample_rate=rate,
        layout="stereo",
        kind="mp4",
    )
    return path, waveform


def sound_packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_an_original_sound_is_copied_where_it_can_be(tmp_path, song):
    path, _ = song
    write_clip(tmp_path / "b.mp4", levels(24), OriginalSound(path), frame_rate=Fraction(24))
    copied = sound_packets(tmp_path / "b.mp4")
    assert copied == sound_packets(path)[: len(copied)]
    heard = read_sound(tmp_path / "b.mp4").waveform
    assert heard.shape == (2, 48_000)  # cut to the picture
    assert torch.equal(heard, read_sound(path, duration=1).waveform)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


def test_an_original_sound_is_coded_again_from_the_exact_span_otherwise(tmp_path, song):
    path, waveform = song
    write_clip(tmp_path / "b.mp4", levels(24), OriginalSound(path, start=0.7), frame_rate=Fraction(24))
    heard = read_sound(tmp_path / "b.mp4").waveform
    assert heard.shape == (2, 48_000)
    assert lag(waveform[:, 33_600 : 33_600 + 48_000], heard) == 0


def test_an_original_sound_of_a_rate_that_aac_lacks_is_resampled(tmp_path):
    rate = 192_000
    path = write_sound(
        tmp_path / "a.wav", clicks(rate, rate).numpy().T.reshape(1, -1).copy(), codec="pcm_f32le",
        sample_format="flt", sample_rate=rate, layout="stereo",
    )  # fmt: skip
    write_clip(tmp_path / "b.mp4", levels(24), OriginalSound(path), frame_rate=Fraction(24))
    heard = read_sound(tmp_path / "b.mp4")
    assert heard.sample_rate == 96_000
    assert abs(lag(clicks(rate, rate)[:, ::2], heard.waveform)) <= 1


def test_an_original_without_sound_is_named(tmp_path):
    silent = write_video(tmp_path / "a.mp4", levels(3).numpy())
    with pytest.raises(MediaError, match=r"a\.mp4 has no sound track"):
        write_clip(tmp_path / "b.mp4", levels(3), OriginalSound(silent), frame_rate=Fraction(24))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_corners_tell_a_turned_picture():
    """The measure of the rotation tests tells all eight ways apart."""
    ways = [torch.rot90(p, k) for k in range(4) for p in (quadrants(32, 32), quadrants(32, 32).flip(1))]
    seen = {tuple(corners(way).flatten().tolist()) for way in ways}
    assert len(seen) == 8
