"""Latents to tokens and back."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundstage.models.transformer.patchify import (
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
)

small = st.integers(1, 3)


@settings(max_examples=25)
@given(b=small, c=small, f=small, rows=small, columns=small, patch=st.integers(1, 3))
def test_video_comes_back(b: int, c: int, f: int, rows: int, columns: int, patch: int):
    latents = torch.randn(b, c, f, rows * patch, columns * patch)
    tokens = patchify_video(latents, patch)
    assert tokens.shape == (b, f * rows * columns, c * patch * patch)
    assert torch.equal(unpatchify_video(tokens, latents.shape[2:], patch), latents)


@settings(max_examples=25)
@given(b=small, c=small, t=small, m=small)
def test_audio_comes_back(b: int, c: int, t: int, m: int):
    latents = torch.randn(b, c, t, m)
    assert torch.equal(unpatchify_audio(patchify_audio(latents), c), latents)


def test_video_tokens_run_frame_row_column():
    latents = torch.arange(2 * 2 * 3).view(1, 1, 2, 2, 3).float()
    assert patchify_video(latents).flatten().tolist() == list(range(12))


def test_patch_features_run_channel_row_column():
    latents = torch.arange(8.0).view(1, 2, 1, 2, 2)
    assert patchify_video(latents, 2).flatten().tolist() == list(range(8))


def test_audio_features_run_channel_mel():
    latents = torch.arange(6.0).view(1, 2, 1, 3)
    assert patchify_audio(latents).tolist() == [[[0, 1, 2, 3, 4, 5]]]
