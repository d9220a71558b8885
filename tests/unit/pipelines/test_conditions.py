"""Stream states: what conditions change, and what they leave alone."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.pipelines.conditions import (
    StreamState,
    VideoGrid,
    append_keyframe,
    append_reference,
    empty_audio,
    empty_video,
    freeze,
    keep_where,
    regenerate_between,
    replace_frames,
    start_from,
)

GEOMETRY = VideoGeometry(spatial_factor=8, channels=3, patch_size=2)
GRID = VideoGrid.of(GEOMETRY, 17, 32, 48, Fraction(24))  # 3 latent frames of 2 x 3 tokens


def latents(frames: int = 1, height: int = 4, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, frames, height, width, generator=torch.Generator().manual_seed(seed))


def tokens(count: int = 18, seed: int = 0) -> Tensor:
    return torch.randn(1, count, 12, generator=torch.Generator().manual_seed(seed))


def test_grid_counts_tokens_of_patches() -> None:
    assert (GRID.num_latent_frames, GRID.rows, GRID.columns) == (3, 2, 3)
    assert GRID.num_tokens == 18
    assert GRID.latent_shape == (3, 4, 6)


def test_empty_streams_generate_everything() -> None:
    video, audio = empty_video(GRID), empty_audio(AudioGeometry(), 5, batch=2)
    assert video.generated.all()
    assert video.latents.shape == (1, 18, 12)
    assert audio.latents.shape == (2, 5, 128)
    assert audio.positions.shape == (2, 1, 5, 2)
    assert video.attention_weights is None
    assert not video.frozen


def test_first_latent_frame_is_marked_as_a_single_picture() -> None:
    mask = empty_video(GRID).keyframe_mask
    assert mask[:, :6].all()
    assert not mask[:, 6:].any()
    assert empty_audio(AudioGeometry(), 5).keyframe_mask is None


def test_replaced_frame_is_kept_and_the_rest_generated() -> None:
    state = replace_frames(empty_video(GRID), GRID, latents(), index=1)
    assert torch.equal(state.clean[:, 6:12], GRID.tokens(latents()))
    assert state.generated[0, :, 0].tolist() == [True] * 6 + [False] * 6 + [True] * 6
    assert not state.latents.any()


def test_soft_strength_leaves_part_to_sampling() -> None:
    state = replace_frames(empty_video(GRID), GRID, latents(), strength=0.75)
    assert state.denoise_mask[0, :6, 0].tolist() == [0.25] * 6


@pytest.mark.parametrize("index", [-1, 3])
def test_frame_outside_the_clip_is_an_error_that_names_the_last_start(index: int) -> None:
    with pytest.raises(RequestError, match="outside the clip's 3; the last possible start is 2"):
        replace_frames(empty_video(GRID), GRID, latents(), index=index)


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_strength_outside_its_range_is_an_error(strength: float) -> None:
    for condition in (
        lambda state: replace_frames(state, GRID, latents(), strength=strength),
        lambda state: append_keyframe(state, GRID, latents(), frame=0, strength=strength),
        lambda state: append_reference(state, GRID, latents(), strength=strength),
        lambda state: keep_where(state, tokens(), torch.ones(1, 18, 1), strength=strength),
    ):
        with pytest.raises(RequestError, match=f"strength={strength} is outside"):
            condition(empty_video(GRID))


def test_keyframe_is_appended_behind_the_clip_and_dropped_from_the_result() -> None:
    state = append_keyframe(empty_video(GRID), GRID, latents(), frame=12)
    assert state.num_target == 18
    assert state.latents.shape[1] == 24
    assert not state.generated[:, 18:].any()
    assert not state.keyframe_mask[:, 18:].any()
    torch.testing.assert_close(state.positions[0, 0, 18], torch.tensor([12 / 24, 13 / 24]))
    sampled = tokens(24)
    assert torch.equal(state.result(sampled), sampled[:, :18])


def test_clip_as_keyframe_at_the_beginning_has_the_clips_own_times() -> None:
    state = append_keyframe(empty_video(GRID), GRID, latents(3), frame=0, num_frames=17)
    assert torch.equal(state.positions[:, :, 18:], state.positions[:, :, :18])


def test_reference_of_half_size_spreads_over_the_same_picture() -> None:
    state = append_reference(empty_video(GRID), GRID, latents(3, 2, 4), downscale_factor=2)
    assert state.positions[0, 1, 18:].max() == 32
    assert state.positions[0, 2, 18:].max() == 64


def test_reference_with_fewer_frames_lies_at_the_frames_it_stands_for() -> None:
    state = append_reference(empty_video(GRID), GRID, latents(2), temporal_factor=2)
    times = state.positions[0, 0, 18::6] * 24
    torch.testing.assert_close(times, torch.tensor([[0.0, 1.0], [1.0, 17.0]]))


def weights(state: StreamState) -> Tensor:
    assert state.attention_weights is not None
    return state.attention_weights.weights()[0]


def test_strength_of_a_reference_holds_both_ways_and_per_token() -> None:
    strengths = torch.tensor([0.25, 0.5, 0.75, 1.0, 0.0, 0.5])
    state = append_reference(empty_video(GRID), GRID, latents(), attention_strength=strengths)
    table = weights(state)
    assert torch.equal(table[0, 18:], strengths)
    assert torch.equal(table[18:, 0], strengths)
    assert (table[18:, 18:] == 1).all()
    assert (table[:18, :18] == 1).all()


def test_blocks_of_attention_do_not_depend_on_the_order_of_conditions() -> None:
    def keyframe(state: StreamState) -> StreamState:
        return append_keyframe(state, GRID, latents(), frame=8)

    def reference(state: StreamState) -> StreamState:
        return append_reference(state, GRID, latents(), attention_strength=0.5)

    def both(first: Callable, second: Callable) -> Tensor:
        return weights(second(first(empty_video(GRID))))

    swapped = torch.cat([torch.arange(18), torch.arange(24, 30), torch.arange(18, 24)])
    assert torch.equal(both(keyframe, reference), both(reference, keyframe)[swapped][:, swapped])


def test_references_do_not_see_each_other_and_keyframes_do() -> None:
    state = append_keyframe(empty_video(GRID), GRID, latents(), frame=8)
    state = append_keyframe(state, GRID, latents(), frame=16)
    state = append_reference(state, GRID, latents(), attention_strength=0.5)
    state = append_reference(state, GRID, latents(), attention_strength=1.0)
    table = weights(state)
    assert (table[18:24, 24:30] == 1).all()
    assert (table[18:30, 30:] == 0).all()
    assert (table[30:36, 36:] == 0).all()
    assert (table[:18, 36:] == 1).all()


def test_appended_tokens_without_strengths_need_no_weights() -> None:
    state = append_keyframe(empty_video(GRID), GRID, latents(), frame=8)
    assert append_reference(state, GRID, latents()).attention_weights is None


@pytest.mark.parametrize("strength", [-0.5, 1.5])
def test_attention_strength_outside_its_range_is_an_error(strength: float) -> None:
    with pytest.raises(RequestError, match="attention_strength"):
        append_reference(empty_video(GRID), GRID, latents(), attention_strength=strength)


def test_time_region_regenerates_what_overlaps_it() -> None:
    state = start_from(empty_audio(AudioGeometry(), 10), torch.randn(1, 10, 128))
    region = regenerate_between(state, 0.1, 0.2)  # tokens 3 to 5: [0.09, 0.13), [0.13, 0.17), [0.17, 0.21)
    assert region.generated[0, :, 0].nonzero().flatten().tolist() == [3, 4, 5]
    assert torch.equal(region.clean, state.clean)


def test_empty_time_region_is_an_error() -> None:
    with pytest.raises(RequestError, match="the span 2-1 s is empty"):
        regenerate_between(empty_audio(AudioGeometry(), 10), 2.0, 1.0)


def test_mask_keeps_where_it_is_one_and_mixes_where_it_is_between() -> None:
    keep = torch.zeros(1, 18, 1)
    keep[:, :6], keep[:, 6:12] = 1.0, 0.5
    state = keep_where(start_from(empty_video(GRID), tokens(seed=1)), tokens(seed=2), keep)
    assert torch.equal(state.clean[:, :6], tokens(seed=2)[:, :6])
    assert torch.equal(state.clean[:, 12:], tokens(seed=1)[:, 12:])
    assert state.denoise_mask[0, ::6, 0].tolist() == [0.0, 0.5, 1.0]


def test_frozen_stream_is_given_whole() -> None:
    state = freeze(empty_video(GRID), tokens())
    assert state.frozen
    assert torch.equal(state.clean, tokens())
    assert torch.equal(state.latents, tokens())
    assert not state.generated.any()


@pytest.mark.parametrize(
    "condition",
    [
        lambda state: replace_frames(state, GRID, latents()),
        lambda state: append_keyframe(state, GRID, latents(), frame=3),
        lambda state: append_reference(state, GRID, latents(), attention_strength=0.5),
        lambda state: regenerate_between(state, 0.0, 0.1),
        lambda state: keep_where(state, tokens(), torch.ones(1, 18, 1)),
        lambda state: freeze(state, tokens()),
    ],
)
def test_condition_leaves_the_state_it_was_given_alone(condition: Callable) -> None:
    state = empty_video(GRID)
    before = {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)}
    condition(state)
    assert all(torch.equal(before[name], getattr(state, name)) for name in before)


def test_state_moves_as_a_whole() -> None:
    state = append_keyframe(empty_video(GRID), GRID, latents(), frame=3)
    moved = state.to(torch.device("meta"))
    assert {getattr(moved, n).device.type for n, v in vars(state).items() if isinstance(v, Tensor)} == {
        "meta"
    }
    assert replace(moved, num_target=1).num_target == 1
