"""The straight path and its keep mask."""

import torch

from soundstage.core.types import AV
from soundstage.diffusion.flow import (
    add_noise,
    each_stream,
    keep_clean,
    starting_point,
    to_denoised,
    to_velocity,
)


def tokens(seed: int, batch: int = 2, count: int = 5, width: int = 3) -> torch.Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(seed))


def test_path_runs_from_clean_to_noise() -> None:
    clean, noise = tokens(0), tokens(1)
    assert torch.equal(add_noise(clean, noise, 0.0), clean)
    assert torch.equal(add_noise(clean, noise, 1.0), noise)


def test_denoised_of_the_true_velocity_is_the_clean_sample() -> None:
    clean, noise = tokens(0), tokens(1)
    for sigma in (
        0.3,
        torch.tensor([0.2, 0.9]),
        torch.rand(2, 5, generator=torch.Generator().manual_seed(2)),
    ):
        noisy = add_noise(clean, noise, sigma)
        torch.testing.assert_close(to_denoised(noisy, to_velocity(clean, noise), sigma), clean)


def test_levels_per_sample_and_per_token_broadcast_over_channels() -> None:
    clean, noise = tokens(0), tokens(1)
    per_sample = torch.tensor([0.25, 0.75])
    per_token = per_sample[:, None].expand(2, 5)
    assert torch.equal(add_noise(clean, noise, per_sample), add_noise(clean, noise, per_token))


def test_token_at_timestep_zero_is_returned_bit_for_bit() -> None:
    noisy, velocity = tokens(0), tokens(1) * 1e6
    assert torch.equal(to_denoised(noisy, velocity, torch.zeros(2, 5)), noisy)


def test_kept_tokens_are_bit_equal_and_fractions_blend() -> None:
    new, clean = tokens(0), tokens(1)
    mask = torch.tensor([0.0, 1.0, 0.25, 0.0, 1.0])[None, :, None].expand(2, 5, 1)
    kept = keep_clean(new, clean, mask)
    assert torch.equal(kept[:, [0, 3]], clean[:, [0, 3]])
    assert torch.equal(kept[:, [1, 4]], new[:, [1, 4]])
    torch.testing.assert_close(kept[:, 2], 0.25 * new[:, 2] + 0.75 * clean[:, 2])


def test_starting_point_noises_the_latents_by_scale_and_keeps_the_clean() -> None:
    latents, clean, noise = tokens(0), tokens(1), tokens(2)
    mask = torch.ones(2, 5, 1)
    mask[:, 0] = 0
    started = starting_point(latents, clean, mask, noise, 0.6)
    assert torch.equal(started[:, 0], clean[:, 0])
    torch.testing.assert_close(started[:, 1:], 0.4 * latents[:, 1:] + 0.6 * noise[:, 1:])


def test_half_precision_is_computed_in_float32() -> None:
    clean, noise = tokens(0).bfloat16(), tokens(1).bfloat16()
    assert add_noise(clean, noise, 0.5).dtype == torch.float32
    assert to_denoised(clean, noise, 0.5).dtype == torch.float32


def test_float64_stays_float64() -> None:
    clean, noise = tokens(0).double(), tokens(1).double()
    assert keep_clean(clean, noise.float(), torch.ones(2, 5, 1)).dtype == torch.float64


def test_each_stream_leaves_an_absent_stream_absent() -> None:
    pair = each_stream(torch.add, AV(torch.ones(1), None), AV(torch.ones(1), torch.ones(1)))
    assert pair.video == 2
    assert pair.audio is None
