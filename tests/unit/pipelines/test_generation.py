"""The result: a clip, its sound, and how it was made."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.media.mux import read_metadata
from soundstage.media.video import read_clip
from soundstage.pipelines.generation import Generation, fit_sound
from soundstage.pipelines.request import GenerationRequest


def generation(**changes: Any) -> Generation:
    generator = torch.Generator().manual_seed(0)
    values = {
        "pixels": torch.rand(3, 9, 16, 32, generator=generator) * 2 - 1,
        "waveform": 0.1 * torch.randn(2, 9000, generator=generator),
        "sample_rate": 24_000,
        "frame_rate": Fraction(24),
        "request": GenerationRequest(prompt="a red ball bounces", seed=7),
        "model": "tiny",
        "notes": ("cut",),
    }
    return Generation(**{**values, **changes})


def test_frames_are_eight_bits_channels_last() -> None:
    frames = generation(pixels=torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 2, 4, 6)).frames
    assert frames.shape == (2, 4, 6, 3)
    assert frames[0, 0, 0].tolist() == [0, 128, 255]


def test_duration_in_seconds() -> None:
    assert generation().duration == 0.375


def test_file_holds_picture_and_sound_of_the_same_length(tmp_path: Path) -> None:
    clip = read_clip(generation().save(tmp_path / "clip.mp4"))
    assert clip.frames.shape == (9, 16, 32, 3)
    assert clip.frame_rate == 24
    assert clip.sample_rate == 24_000
    assert clip.waveform.shape == (2, 9000)


def test_file_carries_its_request_and_makes_it_again(tmp_path: Path) -> None:
    made = generation()
    stored = read_metadata(made.save(tmp_path / "clip.mp4"))
    assert GenerationRequest.of(stored["request"]) == made.request
    assert stored["model"] == "tiny"
    assert set(stored["versions"]) == {"soundstage", "torch"}
    assert json.loads(json.dumps(made.metadata)) == stored


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (generation().save(tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert first == second


def test_sound_alone_goes_into_a_wav(tmp_path: Path) -> None:
    path = generation().save(str(tmp_path / "sound.wav"))
    assert path.stat().st_size > 9000 * 4


def test_other_suffix_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"ends neither in \.mp4 nor in \.wav"):
        generation().save(tmp_path / "clip.avi")
    assert list(tmp_path.iterdir()) == []


def tone(num_samples: int) -> Tensor:
    return torch.ones(2, num_samples)


def test_short_sound_fades_out_over_five_milliseconds_and_is_followed_by_silence() -> None:
    fitted = fit_sound(tone(1000), 1720, 24_000)
    assert fitted.shape == (2, 1720)
    assert (fitted[:, :880] == 1).all()
    assert (fitted[:, 880:1000].diff() < 0).all()
    assert fitted[0, 999].item() == pytest.approx(0, abs=1e-6)
    assert not fitted[:, 1000:].any()


def test_long_sound_is_cut_and_fades_out() -> None:
    fitted = fit_sound(tone(2000), 1000, 24_000)
    assert fitted.shape == (2, 1000)
    assert fitted[0, -1].item() == pytest.approx(0, abs=1e-6)
    assert (fitted[:, :880] == 1).all()


def test_sound_that_fits_is_left_alone() -> None:
    assert torch.equal(fit_sound(tone(1000), 1000, 24_000), tone(1000))


def test_sound_shorter_than_the_fade_is_faded_whole() -> None:
    fitted = fit_sound(tone(10), 100, 24_000)
    assert fitted.shape == (2, 100)
    assert fitted[0, 0] == 1


def test_fitting_leaves_its_input_alone() -> None:
    given = tone(1000)
    fit_sound(given, 1500, 24_000)
    assert (given == 1).all()
