import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soundstage.core.errors import MediaError, ResourceError
from soundstage.media.audio import read_sound, write_wav
from soundstage.media.mux import read_metadata, write_clip


def tone(num_samples, sample_rate, hertz=440.0):
    phase = 2 * torch.pi * hertz * torch.arange(num_samples) / sample_rate
    return torch.stack([phase.sin(), phase.cos()]) * 0.5


def write_pcm(path, samples, *, codec="pcm_s16le", sample_rate=8000, layout="mono", first_pts=0, kind="wav"):
    """Write integer PCM of a given format through PyAV, for what our own writer does not make."""
    formats = {"pcm_u8": "u8", "pcm_s16le": "s16"}
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=sample_rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples, format=formats[codec], layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, first_pts, Fraction(1, sample_rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_wav_comes_back_to_sixteen_bits(tmp_path):
    path = tmp_path / "tone.wav"
    waveform = tone(24_000, 24_000)
    write_wav(path, waveform, sample_rate=24_000)
    sound = read_sound(path)
    assert sound.sample_rate == 24_000
    torch.testing.assert_close(sound.waveform, waveform, atol=1 / 32768 * 1.5, rtol=0)


def test_wav_is_read_by_the_standard_library(tmp_path):
    path = tmp_path / "tone.wav"
    write_wav(path, torch.tensor([[0.0, 1.0, -2.0], [0.5, 0.0, 0.25]]), sample_rate=8000, metadata={"a": 1})
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        samples = np.frombuffer(file.readframes(9), "<i2").reshape(-1, 2)
    assert samples.tolist() == [[0, 16384], [32767, 0], [-32767, 8192]]


@pytest.mark.parametrize("prompt", ["red", "odd", "日本 “x”"])
def test_wav_carries_metadata(tmp_path, prompt):
    path = tmp_path / "a.wav"
    write_wav(path, torch.zeros(2, 10), sample_rate=8000, metadata={"prompt": prompt})
    assert read_metadata(path) == {"prompt": prompt}


def test_same_sound_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_wav(tmp_path / name, tone(100, 8000), sample_rate=8000, metadata={"seed": 3})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(st.integers(0, 50))
def test_any_length_is_kept(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    write_wav(path, torch.zeros(2, length), sample_rate=8000)
    assert path.stat().st_size == 44 + 4 * length


def test_unsigned_bytes_are_centred(tmp_path):
    path = tmp_path / "u8.wav"
    write_pcm(path, np.full((1, 400), 128, np.uint8), codec="pcm_u8")
    assert read_sound(path).waveform.abs().max() == 0


def test_mono_fills_both_channels(tmp_path):
    path = tmp_path / "mono.wav"
    write_pcm(path, np.full((1, 400), 8192, np.int16))
    waveform = read_sound(path).waveform
    assert waveform.shape == (2, 400)
    torch.testing.assert_close(waveform[0], waveform[1])
    assert waveform.mean() == pytest.approx(0.25, abs=0.08)  # the mixer may keep power or level


def test_track_that_starts_late_is_preceded_by_silence(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=24)
        picture.width = picture.height = 16
        picture.pix_fmt = "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="stereo")
        for tick in range(24):
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts, frame.time_base = tick, Fraction(1, 24)
            container.mux(picture.encode(frame))
        samples = av.AudioFrame.from_ndarray(
            np.full((1, 4000), 9000, np.int16), format="s16", layout="stereo"
        )
        samples.sample_rate, samples.pts, samples.time_base = 8000, 4000, Fraction(1, 8000)
        container.mux(picture.encode(None))
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    waveform = read_sound(path).waveform
    assert waveform[:, :3990].abs().max() == 0
    assert waveform[:, 4010:5990].abs().min() > 0.2


def test_silent_video_has_no_sound(tmp_path):
    path = tmp_path / "silent.mp4"
    write_clip(path, torch.zeros(9, 16, 16, 3, dtype=torch.uint8), None, frame_rate=Fraction(24))
    assert read_sound(path, optional=True) is None
    with pytest.raises(MediaError, match="no sound track"):
        read_sound(path)


def test_unreadable_and_unwritable_files_are_named(tmp_path):
    with pytest.raises(MediaError, match=r"cannot read .*none\.wav"):
        read_sound(tmp_path / "none.wav")
    with pytest.raises(ResourceError, match=r"cannot write .*a\.wav"):
        write_wav(tmp_path / "none" / "a.wav", torch.zeros(2, 1), sample_rate=8000)
    with pytest.raises(MediaError, match="not finite"):
        write_wav(tmp_path / "a.wav", torch.full((2, 4), torch.nan), sample_rate=8000)
