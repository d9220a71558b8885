"""Norms: unit root mean square, float32 statistics."""

import torch

from soundstage.nn.norms import RMSNorm, rms_norm


def test_result_has_unit_root_mean_square():
    x = 7 * torch.randn(3, 5, 32)
    torch.testing.assert_close(rms_norm(x, 1e-6).square().mean(-1), torch.ones(3, 5))


def test_mean_is_not_subtracted():
    torch.testing.assert_close(rms_norm(torch.full((1, 4), 3.0), 1e-6), torch.ones(1, 4))


def test_zero_vector_stays_zero():
    assert rms_norm(torch.zeros(1, 4), 1e-6).abs().max() == 0


def test_weight_scales_features():
    norm = RMSNorm(4)
    torch.nn.init.constant_(norm.weight, 2.5)
    x = torch.randn(2, 4)
    torch.testing.assert_close(norm(x), 2.5 * rms_norm(x, 1e-6))


def test_statistics_of_half_precision_do_not_overflow():
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # the sum of squares exceeds float16
    torch.testing.assert_close(rms_norm(x, 1e-6), torch.ones(1, 64, dtype=torch.float16))


def test_weight_of_another_dtype_leaves_the_activation_dtype():
    norm = RMSNorm(4)
    assert norm(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
