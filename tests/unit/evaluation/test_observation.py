import pytest
import torch

from soundstage.core.errors import MediaError
from soundstage.evaluation.observation import SAMPLE_RATE, observe, read_timing


def test_detector_runs_once(seen):
    _, clip = seen(0)
    calls = []

    def detector(observation):
        calls.append(observation)
        return len(calls)

    assert clip.find(detector) == clip.find(detector) == 1
    assert calls == [clip]


def test_duration_includes_the_last_frame(seen):
    assert seen(0)[1].duration == pytest.approx(49 / 24)


def test_sound_is_heard_at_the_detectors_rate(seen):
    _, clip = seen(0)
    assert clip.waveform.shape == (2, -(-49 * SAMPLE_RATE // 24))


def test_clip_without_sound_is_silent_for_its_length(as_observation):
    clip = as_observation(torch.zeros(3, 9, 32, 32), None)
    assert clip.waveform.shape[1] == round(9 / 24 * SAMPLE_RATE)
    assert not clip.waveform.any()


def test_file_is_read_with_its_timing(world_file):
    path, _, clip = world_file
    timing = read_timing(path)
    assert timing.video_duration == pytest.approx(49 / 24)
    assert timing.audio_duration == pytest.approx(49 / 24, abs=1e-4)
    assert timing.audio_start == timing.video_start == 0
    assert clip.pictures.shape == (49, 64, 64, 3)


def test_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(MediaError, match=r"nothing\.mp4"):
        observe(tmp_path / "nothing.mp4")
