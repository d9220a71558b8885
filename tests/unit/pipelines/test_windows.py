"""Long clips: windows, what they hand over, and how they are joined."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

import tiny
from soundstage.checkpoints import keymap
from soundstage.checkpoints.generation import SamplingDefaults
from soundstage.checkpoints.versions.embedded import EMBEDDED
from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import AV
from soundstage.models.transformer.patchify import patchify_audio
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.conditions import empty_audio, empty_video
from soundstage.pipelines.plan import Basis, make_plan
from soundstage.pipelines.preparation import prepare
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.windows import DriftControl, Joiner, crossfade, hand_over, take_over, window_seed

GEOMETRY = VideoGeometry(spatial_factor=8, channels=4, patch_size=2)
AUDIO = AudioGeometry(channels=1)
DEFAULTS = replace(EMBEDDED.presets["dev"], longest=(49 - 8) / 24)  # as with latent frames of eight
RATE = 2400  # samples a second, so that tests are small


def canvas(defaults: SamplingDefaults = DEFAULTS, **fields) -> Canvas:
    return Canvas.of(GenerationRequest(prompt="a ball", **fields), defaults, GEOMETRY, audio=AUDIO)


def test_clip_that_the_model_was_trained_for_is_made_at_once() -> None:
    assert canvas().windows is None
    assert canvas(num_frames=49).windows is None
    official = SamplingDefaults(num_inference_steps=1, schedule="shifted", sampler="euler")
    assert canvas(official, duration=20.0).windows is None
    assert canvas(official, duration=20.0).notes == (
        "480 frames are not 8 k + 1: generated 481, then cut to the first 480",
    )


def test_the_model_inside_makes_a_clip_as_long_as_those_of_its_training_at_once() -> None:
    defaults, inside = EMBEDDED.presets["dev"], replace(GEOMETRY, temporal_factor=4)
    whole = Canvas.of(GenerationRequest(prompt="a ball"), defaults, inside, audio=AUDIO)
    assert whole.windows is None
    assert not whole.notes
    longer = Canvas.of(GenerationRequest(prompt="a ball", num_frames=53), defaults, inside, audio=AUDIO)
    assert longer.windows is not None


def test_longer_clip_comes_in_windows_of_the_models_length_and_says_so() -> None:
    windows = canvas(duration=60.0).windows
    assert (windows.num_frames, windows.overlap, windows.count) == (49, 25, 59)
    note = canvas(duration=60.0).notes[0]
    assert note.startswith(
        "60.0 s is beyond the 2.04 s that the model was trained for: generated in 59 windows"
    )
    official = SamplingDefaults(num_inference_steps=1, schedule="shifted", sampler="euler")
    assert canvas(official, duration=60.0).windows.num_frames == 121
    assert "beyond the 20.3 s that the model was trained for" in canvas(official, duration=60.0).notes[0]


@pytest.mark.parametrize("num_frames", [50, 73, 74, 100, 481])
def test_windows_cover_the_clip_and_none_is_needless(num_frames: int) -> None:
    windows = canvas(num_frames=num_frames).windows
    end = (windows.count - 1) * windows.advance + windows.num_frames
    assert end >= num_frames > end - windows.advance


def test_window_can_be_chosen_also_to_make_a_long_clip_at_once() -> None:
    assert canvas(num_frames=49, window=25).windows.num_frames == 25
    assert canvas(num_frames=100, window=100).windows is None
    assert "4.2 s is beyond the 2.04 s" in canvas(num_frames=100, window=100).notes[-1]


@pytest.mark.parametrize(
    ("rate", "window", "overlap"), [(24, 121, 25), (25, 121, 25), (30, 121, 25), (24, 113, 17), (24, 25, 17)]
)
def test_overlap_lets_the_tokens_of_the_sound_fall_into_step(rate: int, window: int, overlap: int) -> None:
    assert canvas(num_frames=200, frame_rate=rate, window=window).windows.overlap == overlap


def test_windows_that_do_not_fit_the_grid_are_rounded_with_a_note_or_refused() -> None:
    settled = canvas(num_frames=100, window=50, overlap=18)
    assert (settled.windows.num_frames, settled.windows.overlap) == (57, 25)
    assert settled.notes[-2:] == (
        "window=50 is not 8 k + 1 frames: it is 57 instead",
        "overlap=18 is not 8 k + 1 frames: it is 25 instead",
    )
    with pytest.raises(RequestError, match=r"window=50 is not 8 k \+ 1; the nearest are 49 and 57"):
        canvas(num_frames=97, window=50, snap="error")
    with pytest.raises(RequestError, match=r"overlap=18 is not 8 k \+ 1; the nearest are 17 and 25"):
        canvas(num_frames=97, window=49, overlap=18, snap="error")
    exact = canvas(num_frames=97, window=49, overlap=17, snap="error")
    assert not any("instead" in note for note in exact.notes)


@pytest.mark.parametrize("field", [{"overlap": 17}, {"drift_control": 0.5}])
def test_what_is_about_windows_is_refused_for_a_clip_made_at_once(field: dict[str, float]) -> None:
    basis = Basis(generation=EMBEDDED, variant="dev", geometry=GEOMETRY, audio_geometry=AUDIO)
    prepare(GenerationRequest(prompt="a ball", num_frames=100, **field), basis)
    with pytest.raises(RequestError, match="about long clips that come in windows; this one is"):
        prepare(GenerationRequest(prompt="a ball", num_frames=49, **field), basis)


def test_an_overlap_that_is_refused_is_quoted_as_it_was_given() -> None:
    with pytest.raises(RequestError, match="overlap=60 frames do not suit windows of 49"):
        canvas(num_frames=100, window=49, overlap=60)


@pytest.mark.parametrize("overlap", [1, 8, 49])
def test_overlap_that_does_not_suit_the_window_is_refused(overlap: int) -> None:
    settled = {"num_frames": 100, "window": 49}
    if overlap == 8:  # rounded up to 9, the least
        assert canvas(overlap=overlap, **settled).windows.overlap == 9
        return
    with pytest.raises(RequestError, match="do not suit windows of 49; it can be 9 to 41"):
        canvas(overlap=overlap, **settled)


@pytest.mark.parametrize(("num_frames", "rate"), [(120, "24"), (97, "24000/1001"), (75, "30")])
def test_windows_of_one_clip_join_to_that_clip(num_frames: int, rate: str) -> None:
    """Cut from one picture and one sound, they must come out as these, every frame and sample once."""
    settled = canvas(num_frames=num_frames, frame_rate=rate, width=16, height=16)
    windows = settled.windows
    generator = torch.Generator().manual_seed(0)
    total = (windows.count - 1) * windows.advance + windows.num_frames
    pixels = torch.rand(3, total, 16, 16, generator=generator) * 2 - 1
    length = settled.num_samples(RATE, total)
    sound = torch.rand(2, length, generator=generator) - 0.5
    joiner = Joiner(settled, windows, RATE)
    parts = []
    for index in range(windows.count):
        first = index * windows.advance
        begin, end = (settled.num_samples(RATE, f) for f in (first, first + windows.num_frames))
        parts.append(joiner.add(pixels[:, first : first + windows.num_frames], sound[:, begin : end - 72]))
    joined = torch.cat([part.pixels for part in parts], dim=1)
    heard = torch.cat([part.waveform for part in parts], dim=1)
    assert joined.shape[1] == num_frames
    torch.testing.assert_close(joined, pixels[:, :num_frames])
    assert heard.shape[1] == settled.num_samples(RATE)
    near_end = round(0.05 * RATE)  # the decoder's sound ends early, and is faded out
    torch.testing.assert_close(heard[:, :-near_end], sound[:, : heard.shape[1]][:, :-near_end])


def test_crossfade_keeps_the_power_of_like_and_of_unlike_sounds() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 2, 20_000, generator=generator)
    assert torch.allclose(crossfade(one, one), one, atol=1e-5)
    for beginning in (other, 0.6 * one + 0.8 * other):
        power = crossfade(one, beginning).square().unflatten(1, (10, -1)).mean(dim=(0, 2))
        torch.testing.assert_close(power, torch.ones(10), atol=0.06, rtol=0)
    assert torch.equal(crossfade(one, torch.zeros_like(one))[:, :1], one[:, :1])


def test_first_window_has_the_seed_of_the_clip_and_later_ones_their_own() -> None:
    assert window_seed(7, 0) == 7
    assert len({window_seed(seed, index) for seed in (7, 8) for index in range(5)}) == 10


@pytest.fixture
def handed_over():
    vae = tiny.modules("embedded")[keymap.VIDEO_VAE]
    basis = Basis(generation=EMBEDDED, variant="dev", geometry=GEOMETRY, audio_geometry=AUDIO)
    plan = make_plan(GenerationRequest(prompt="a ball", num_frames=120, width=16, height=16), basis)
    stage, windows = plan.stages[0], plan.canvas.windows
    generator = torch.Generator().manual_seed(0)
    latents = AV(
        torch.randn(1, 4, 7, 2, 2, generator=generator), torch.randn(1, 1, 51, 16, generator=generator)
    )
    pixels = torch.rand(3, 49, 16, 16, generator=generator)
    given = hand_over(latents, pixels, stage, windows, vae, AUDIO)
    return vae, stage, latents, pixels, given


def test_window_takes_over_the_last_latents_of_the_one_before_bit_for_bit(handed_over) -> None:
    vae, _, latents, pixels, given = handed_over
    # 24 frames on, 25 are shared: their first as a frame of its own, then three latents of eight frames
    assert given.video.shape[2] == 4
    assert torch.equal(given.video[:, :, 1:], latents.video[:, :, 4:])
    torch.testing.assert_close(given.video[:, :, :1], vae.encode(pixels[None, :, 24:25]))
    # one second is 25 tokens; the first token of a window is half of none of the one before
    assert torch.equal(given.audio, latents.audio[:, :, 26:])


def test_what_is_taken_over_is_kept_and_the_rest_generated(handed_over) -> None:
    _, stage, latents, _, given = handed_over
    states = AV(empty_video(stage.grid), empty_audio(AUDIO, 51))
    begun = take_over(states, stage, given)
    per_frame = stage.grid.tokens_per_frame
    assert torch.equal(begun.video.clean[:, : 4 * per_frame], stage.grid.tokens(given.video))
    assert begun.video.denoise_mask.flatten().tolist() == [0.0] * 4 * per_frame + [1.0] * 3 * per_frame
    assert torch.equal(begun.audio.clean[:, 1:26], patchify_audio(latents.audio)[:, 26:])
    assert begun.audio.denoise_mask.flatten().tolist() == [1.0] + [0.0] * 25 + [1.0] * 25


def test_frozen_streams_take_nothing_over(handed_over) -> None:
    _, stage, _, _, given = handed_over
    audio = replace(empty_audio(AUDIO, 51), frozen=True)
    assert take_over(AV(None, audio), stage, given) == AV(None, audio)


def test_drift_control_leaves_the_first_window_and_what_was_taken_over() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, 4, 7, 3, 3, generator=generator)
    later = 3 * torch.randn(1, 4, 7, 3, 3, generator=generator) + 2
    control = DriftControl(1.0, 4)
    assert torch.equal(control(first), first)
    steady = control(later)
    assert torch.equal(steady[:, :, :4], later[:, :, :4])
    std, mean = torch.std_mean(later, dim=(2, 3, 4), keepdim=True)
    target_std, target_mean = torch.std_mean(first, dim=(2, 3, 4), keepdim=True)
    expected = (later - mean) / std * target_std + target_mean
    torch.testing.assert_close(steady[:, :, 6], expected[:, :, 6])
    between = torch.lerp(later[:, :, 4], expected[:, :, 4], 1 / 3)
    torch.testing.assert_close(steady[:, :, 4], between)


def test_drift_control_off_changes_nothing() -> None:
    control = DriftControl(0.0, 4)
    for seed in range(2):
        latents = torch.randn(1, 4, 7, 3, 3, generator=torch.Generator().manual_seed(seed))
        assert control(latents) is latents


def test_times_of_windows_are_exact() -> None:
    settled = canvas(duration=30.0, frame_rate="24000/1001")
    assert settled.windows.advance / settled.frame_rate == Fraction(24 * 1001, 24000)
