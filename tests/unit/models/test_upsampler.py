"""Latent upsamplers: sizes, order of the shuffles, the blur, dtypes and headers."""

import pytest
import torch

from soundstage.core.errors import ConfigError
from soundstage.models.upsampler.config import LatentUpsamplerConfig
from soundstage.models.upsampler.model import BlurDownsample, LatentUpsampler, SpatialShuffle, TimeShuffle

SIZE = {"in_channels": 3, "mid_channels": 32, "num_blocks_per_stage": 1}
FORMS = {
    "plain": {},
    "rational x2": {"rational_resampler": True},
    "rational x1.5": {"rational_resampler": True, "spatial_scale": 1.5},
    "rational x4": {"rational_resampler": True, "spatial_scale": 4.0},
    "rational x0.75": {"rational_resampler": True, "spatial_scale": 0.75},
    "temporal": {"spatial_upsample": False, "temporal_upsample": True},
    "both": {"temporal_upsample": True},
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


def build(form: str) -> LatentUpsampler:
    torch.manual_seed(0)
    return LatentUpsampler(LatentUpsamplerConfig.from_header({**SIZE, **FORMS[form]})).eval()


@EVERY_FORM
@pytest.mark.parametrize("size", [(1, 2, 4), (3, 5, 3)])
@torch.no_grad()
def test_the_result_has_the_announced_size(form: str, size: tuple[int, int, int]) -> None:
    upsampler = build(form)
    got = upsampler(torch.randn(2, 3, *size))
    assert got.shape == (2, 3, *upsampler.config.output_size(*size))


def test_sizes_grow_as_named() -> None:
    sizes = {form: build(form).config.output_size(3, 4, 8) for form in FORMS}
    assert sizes == {
        "plain": (3, 8, 16),
        "rational x2": (3, 8, 16),
        "rational x1.5": (3, 6, 12),
        "rational x4": (3, 16, 32),
        "rational x0.75": (3, 3, 6),
        "temporal": (5, 4, 8),
        "both": (5, 8, 16),
    }


def test_the_spatial_shuffle_has_rows_before_columns() -> None:
    x = torch.arange(8.0).view(1, 8, 1, 1)
    assert SpatialShuffle(2)(x).tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]


def test_the_time_shuffle_has_frames_before_rows_before_columns_and_drops_frame_0() -> None:
    x = torch.arange(8.0).view(1, 8, 1, 1, 1)
    assert TimeShuffle(spatial=True)(x).tolist() == [[[[[4, 5], [6, 7]]]]]
    assert TimeShuffle(spatial=False)(x[:, :4]).flatten().tolist() == [1, 3]


def test_the_blur_keeps_a_constant_away_from_the_border_and_is_stored() -> None:
    blur = BlurDownsample(2)
    assert blur.get_buffer("kernel").sum().item() == 1
    assert blur.get_buffer("kernel").shape == (1, 1, 5, 5)
    y = blur(torch.ones(1, 2, 9, 9))
    assert y.shape == (1, 2, 5, 5)
    torch.testing.assert_close(y[:, :, 1:-1, 1:-1], torch.ones(1, 2, 3, 3))
    assert "upsampler.blur_down.kernel" in build("rational x2").state_dict()


@EVERY_FORM
@torch.no_grad()
def test_built_on_meta_and_filled_it_equals_the_original(form: str) -> None:
    upsampler, latents = build(form), torch.randn(1, 3, 2, 2, 4)
    with torch.device("meta"):
        copy = LatentUpsampler(upsampler.config)
    copy.load_state_dict(upsampler.state_dict(), assign=True)
    assert torch.equal(copy(latents), upsampler(latents))


@torch.no_grad()
def test_half_precision_weights_answer_in_the_latents_type() -> None:
    upsampler, latents = build("rational x1.5"), torch.randn(1, 3, 2, 2, 4)
    exact = upsampler(latents)
    half = upsampler.bfloat16()(latents)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0.1)


@torch.no_grad()
def test_spatial_upsampling_treats_a_batch_item_by_item() -> None:
    upsampler, latents = build("plain"), torch.randn(2, 3, 2, 2, 3)
    alone = torch.cat([upsampler(latents[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(upsampler(latents), alone, atol=1e-5, rtol=1e-5)


@EVERY_FORM
def test_a_header_survives_being_written_and_read(form: str) -> None:
    config = build(form).config
    assert LatentUpsamplerConfig.from_header(config.to_header()) == config
    assert config.to_header()["_class_name"] == "LatentUpsampler"


def test_an_empty_header_means_the_official_defaults() -> None:
    config = LatentUpsamplerConfig.from_header({})
    assert (config.in_channels, config.mid_channels, config.num_blocks_per_stage) == (128, 512, 4)
    assert (config.spatial_upsample, config.temporal_upsample, config.rational_resampler) == (
        True,
        False,
        False,
    )


def test_a_temporal_file_ignores_its_spatial_scale() -> None:
    section = {"temporal_upsample": True, "spatial_upsample": False, "rational_resampler": True}
    config = LatentUpsamplerConfig.from_header({**section, "spatial_scale": 1.0})
    assert not config.is_rational
    assert config.scale == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": 2}, "dims=2 is not supported"),
        ({"spatial_upsample": False}, "both off"),
        ({"mid_channels": 48}, "mid_channels=48 is not a multiple of 32"),
        (
            {"rational_resampler": True, "spatial_scale": 3.0},
            "spatial_scale=3.0 is not one of 2.0, 1.5, 4.0, 0.75",
        ),
    ],
)
def test_impossible_upsamplers_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LatentUpsamplerConfig.from_header(change)
