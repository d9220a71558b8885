"""What is written is in step: decoded again, the sound lies within a millisecond of where it was put."""

from fractions import Fraction

import pytest
import torch

from media_files import clicks, lag, write_video
from soundstage.core.geometry import num_audio_samples
from soundstage.media.audio import read_sound
from soundstage.media.mux import write_clip
from soundstage.media.probe import probe
from soundstage.media.remux import replace_sound

RATES = ["24000/1001", "24", "25", "30000/1001", "30", "50", "60"]


def frames(count):
    return torch.zeros(1, 16, 16, 3, dtype=torch.uint8).expand(count, -1, -1, -1)


def offset(waveform, path, sample_rate):
    """Seconds by which the sound is late: in the first second, in the last, and on the whole."""
    heard = read_sound(path).waveform
    assert heard.shape == waveform.shape
    parts = (slice(0, sample_rate), slice(-sample_rate, None), slice(None))
    return max(abs(lag(waveform[:, part], heard[:, part])) for part in parts) / sample_rate


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seconds", [1, 5, 20])
def test_written_clips_are_in_step_from_beginning_to_end(tmp_path, rate, seconds):
    rate, sample_rate = Fraction(rate), 24_000
    count = round(seconds * rate)
    waveform = clicks(num_audio_samples(count, rate, sample_rate), sample_rate)
    path = tmp_path / "a.mp4"
    write_clip(path, frames(count), waveform, frame_rate=rate, sample_rate=sample_rate)
    assert offset(waveform, path, sample_rate) < 0.001
    info = probe(path)
    assert (info.video.frame_rate, info.video.num_frames) == (rate, count)
    assert abs(info.video.duration - info.audio.duration) <= Fraction(1, sample_rate)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("sample_rate", [44_100, 48_000])
def test_replaced_sounds_are_in_step_from_beginning_to_end(tmp_path, rate, sample_rate):
    rate = Fraction(rate)
    count = round(5 * rate)
    source = write_video(tmp_path / "a.mp4", frames(count).numpy(), rate=rate)
    waveform = clicks(num_audio_samples(count, rate, sample_rate), sample_rate)
    replace_sound(source, waveform, tmp_path / "b.mp4", sample_rate=sample_rate)
    assert offset(waveform, tmp_path / "b.mp4", sample_rate) < 0.001
