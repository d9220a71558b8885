"""Sound of every sample format, layout, rate and container loads as what was meant."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from media_files import clicks, lag, levels, write_sound, write_video
from soundstage.core.errors import MediaError, RequestError
from soundstage.media.audio import read_sound
from soundstage.media.mux import write_clip
from soundstage.media.probe import probe

RATE = 8000
RAMP = np.linspace(-0.99, 0.99, 2000)  # from almost full negative to almost full positive


def integers(bits, unsigned=False):
    """The ramp in integers of so many bits, as FFmpeg holds them (24 in the upper bits of 32)."""
    if unsigned:
        return np.round(RAMP * 128 + 128).astype(np.uint8)[None]
    scaled = np.round(RAMP * 2.0 ** (bits - 1))
    return scaled.astype(np.int16)[None] if bits == 16 else (scaled * 2 ** (32 - bits)).astype(np.int32)[None]


FORMATS = {
    "pcm_u8": ("u8", integers(8, unsigned=True), 1 / 256),
    "pcm_s16le": ("s16", integers(16), 2**-16),
    "pcm_s24le": ("s32", integers(24), 2**-23),
    "pcm_s32le": ("s32", integers(32), 2**-23),  # float32 holds 24 bits
    "pcm_f32le": ("flt", RAMP.astype(np.float32)[None], 0),
    "pcm_f64le": ("dbl", RAMP[None], 2**-24),
}


@pytest.mark.parametrize("codec", FORMATS)
def test_every_sample_format_is_centred_and_at_full_scale(tmp_path, codec):
    sample_format, samples, error = FORMATS[codec]
    path = write_sound(
        tmp_path / "a.wav", samples, codec=codec, sample_format=sample_format, sample_rate=RATE, layout="mono"
    )
    sound = read_sound(path)
    expected = torch.from_numpy(RAMP).float().expand(2, -1)
    assert sound.sample_rate == RATE
    assert sound.waveform.dtype == torch.float32
    torch.testing.assert_close(sound.waveform, expected, atol=error + 1e-7, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 96_000, 192_000])
def test_every_sample_rate_is_kept(tmp_path, rate):
    path = write_sound(
        tmp_path / "a.wav",
        integers(16),
        codec="pcm_s16le",
        sample_format="s16",
        sample_rate=rate,
        layout="mono",
    )
    assert read_sound(path).sample_rate == rate
    info = probe(path)
    assert info.video is None
    assert (info.audio.sample_rate, info.audio.channels) == (rate, 1)
    assert info.duration == Fraction(2000, rate)


@pytest.mark.parametrize("layout", ["5.1", "5.1(side)"])
def test_surround_is_mixed_by_the_names_of_its_channels(tmp_path, layout):
    """A tone per channel: where it goes shows that the channels are told apart."""
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    tones = np.stack([np.sin(np.arange(4000) * (0.1 + 0.05 * i)) * 0.5 for i in range(6)]).astype(np.float32)
    packed = tones.T.reshape(1, -1)
    path = write_sound(
        tmp_path / "a.wav", packed, codec="pcm_f32le", sample_format="flt", sample_rate=RATE, layout=layout
    )
    heard = read_sound(path).waveform.numpy()
    gains = np.linalg.lstsq(tones.T, heard.T, rcond=None)[0]  # (channel, side)
    gain = dict(zip(names, gains, strict=True))
    total = 1 + 2 * 0.707
    left, right = ("SL", "SR") if "side" in layout else ("BL", "BR")
    expected = {
        "FL": (1, 0),
        "FR": (0, 1),
        "FC": (0.707,) * 2,
        "LFE": (0, 0),
        left: (0.707, 0),
        right: (0, 0.707),
    }
    for name, sides in expected.items():
        assert gain[name].tolist() == pytest.approx([side / total for side in sides], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "codec", "sample_format", "rate"),
    [
        ("a.flac", "flac", "s16", 44_100),
        ("a.mp3", "libmp3lame", "fltp", 44_100),
        ("a.m4a", "aac", "fltp", 48_000),
        ("a.ogg", "libopus", "flt", 48_000),
        ("a.aiff", "pcm_s16be", "s16", 32_000),
        ("a.mka", "aac", "fltp", 24_000),
    ],
)
def test_every_container_gives_the_sound_in_its_place(tmp_path, name, codec, sample_format, rate):
    """Delay and padding that the encoder added are gone: nothing is late by even one sample."""
    waveform = clicks(rate * 2, rate)
    array = waveform.numpy()
    if sample_format == "s16":
        array = np.round(array * 32767).astype(np.int16)
    if not sample_format.endswith("p"):
        array = np.ascontiguousarray(array.T).reshape(1, -1)
    path = write_sound(
        tmp_path / name, array, codec=codec, sample_format=sample_format, sample_rate=rate, layout="stereo"
    )
    sound = read_sound(path)
    assert sound.sample_rate == rate
    assert abs(lag(waveform, sound.waveform)) <= 1
    assert waveform.shape[1] <= sound.waveform.shape[1] < waveform.shape[1] + 2400  # a packet, at most


@pytest.mark.parametrize(("name", "codec", "sample_format"), [
    ("a.wav", "pcm_f32le", "flt"), ("a.mp3", "libmp3lame", "fltp"), ("a.m4a", "aac", "fltp"),
    ("a.flac", "flac", "s16"), ("a.ogg", "libopus", "flt"),
])  # fmt: skip
@pytest.mark.parametrize(("start", "duration"), [(0.5, 0.3), (1.2345, 0.5), (2.9, None), (0, 0.25)])
def test_a_span_is_the_same_part_of_the_whole(tmp_path, name, codec, sample_format, start, duration):
    rate = 48_000
    array = clicks(rate * 3, rate).numpy()
    if sample_format == "s16":
        array = np.round(array * 32767).astype(np.int16)
    if not sample_format.endswith("p"):
        array = np.ascontiguousarray(array.T).reshape(1, -1)
    path = write_sound(
        tmp_path / name, array, codec=codec, sample_format=sample_format, sample_rate=rate, layout="stereo"
    )
    whole = read_sound(path).waveform
    part = read_sound(path, start=start, duration=duration).waveform
    begin = round(start * rate)
    expected = whole[:, begin:] if duration is None else whole[:, begin : begin + round(duration * rate)]
    assert part.shape == expected.shape
    # A decoder that starts in the middle of a lossy stream may differ by the last bits.
    torch.testing.assert_close(part, expected, atol=2e-4, rtol=0)


def test_only_the_span_is_decoded(tmp_path, monkeypatch):
    rate = 48_000
    path = write_sound(
        tmp_path / "a.wav", np.zeros((1, rate * 60), np.int16), codec="pcm_s16le", sample_format="s16",
        sample_rate=rate, layout="mono",
    )  # fmt: skip
    decoded = []
    monkeypatch.setattr(
        "soundstage.media.audio._stereo",
        lambda frame: decoded.append(frame.samples) or torch.zeros(2, frame.samples),
    )
    assert read_sound(path, start=30, duration=1).waveform.shape == (2, rate)
    assert sum(decoded) < 2 * rate


def test_mp4_with_sound_alone_and_with_a_cover_has_no_picture(tmp_path):
    path = tmp_path / "cover.m4a"
    rate = 24_000
    waveform = clicks(rate, rate)
    write_sound(
        path,
        waveform.numpy(),
        codec="aac",
        sample_format="fltp",
        sample_rate=rate,
        layout="stereo",
        kind="mp4",
    )
    covered = tmp_path / "covered.mp3"
    _add_cover(path, covered)
    for file in (path, covered):
        assert probe(file).video is None
        assert abs(lag(waveform, read_sound(file).waveform)) <= 1


def _add_cover(source, target):
    """An MP3 of the same sound with a picture attached, as players show beside it."""
    rate = 24_000
    waveform = read_sound(source).waveform
    with av.open(str(target), "w") as container:
        sound = container.add_stream("libmp3lame", rate=rate, layout="stereo")
        cover = container.add_stream("mjpeg", rate=25)
        cover.width = cover.height = 16
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame(16, 16, "yuvj420p")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
        piece = av.AudioFrame.from_ndarray(waveform.contiguous().numpy(), format="fltp", layout="stereo")
        piece.sample_rate, piece.pts, piece.time_base = rate, 0, Fraction(1, rate)
        fifo = av.AudioFifo()
        fifo.write(piece)
        while (frame := fifo.read(576, partial=True)) is not None:
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


def test_second_zero_is_the_first_frame_of_the_picture(tmp_path):
    """A file in which the picture starts half a second after the sound."""
    rate = 24_000
    waveform = clicks(rate * 2, rate)
    path = write_video(
        tmp_path / "a.mkv", levels(25).numpy(), shift=12, rate=Fraction(24), sound=(waveform, rate)
    )
    heard = read_sound(path).waveform
    assert abs(lag(waveform[:, rate // 2 :], heard)) <= rate // 1000


def test_wrong_spans_are_named(tmp_path):
    path = tmp_path / "a.mp4"
    write_clip(path, levels(9), torch.zeros(2, 9000), frame_rate=Fraction(24), sample_rate=24_000)
    with pytest.raises(RequestError, match="start at 0 or later"):
        read_sound(path, start=-1)
    with pytest.raises(RequestError, match="not a span"):
        read_sound(path, duration=0)
    with pytest.raises(MediaError, match="no sound after second 5"):
        read_sound(path, start=5)
