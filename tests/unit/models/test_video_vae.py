"""The video VAE: causality, sizes, configuration, tiles."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from soundstage.core.errors import ConfigError, RequestError
from soundstage.models.video_vae.blocks import depth_to_space, patchify, space_to_depth, unpatchify
from soundstage.models.video_vae.config import Block, VideoVAEConfig
from soundstage.models.video_vae.decode_plan import DecodePlan
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.tiling import (
    Tiling,
    decode_streamed,
    encode_tiled,
    intervals,
    space_ramp,
    time_intervals,
    time_ramp,
)

CONFIG = VideoVAEConfig(
    latent_channels=4,
    encoder_base_channels=8,
    decoder_base_channels=4,
    encoder_blocks=(
        Block(kind="res_x", num_layers=1),
        Block(kind="compress_time_res", multiplier=2),
        Block(kind="compress_all_res", multiplier=1),
        Block(kind="res_x", num_layers=1),
    ),
    decoder_blocks=(
        Block(kind="res_x", num_layers=1),
        Block(kind="compress_time", multiplier=2, residual=True),
        Block(kind="compress_all", multiplier=1),
        Block(kind="res_x", num_layers=1),
    ),
    decoder_padding="zeros",
)  # 4 frames and 8 × 8 pixels per cell


def build(config: VideoVAEConfig = CONFIG, **parts: bool) -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(config, **parts).eval().requires_grad_(False)
    vae.per_channel_statistics.get_buffer("mean-of-means").copy_(torch.linspace(-1, 1, 4))
    vae.per_channel_statistics.get_buffer("std-of-means").copy_(torch.linspace(0.5, 2, 4))
    return vae


def pixels(frames: int = 9, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_geometry_comes_from_the_block_list() -> None:
    geometry = CONFIG.geometry
    assert (geometry.temporal_factor, geometry.spatial_factor, geometry.channels) == (4, 8, 4)


def test_sizes_follow_the_geometry() -> None:
    vae = build()
    latents = vae.encode(pixels())
    assert latents.shape == (1, 4, 3, 2, 3)
    assert vae.decode(latents).shape == (1, 3, 9, 16, 24)


@pytest.mark.parametrize("frames", [1, 5])
def test_encoding_a_prefix_gives_the_prefix_of_the_latents(frames: int) -> None:
    vae, clip = build(), pixels(13)
    whole, prefix = vae.encode(clip), vae.encode(clip[:, :, :frames])
    torch.testing.assert_close(prefix, whole[:, :, : prefix.shape[2]], atol=1e-5, rtol=1e-5)


def test_a_causal_decoder_never_looks_ahead() -> None:
    vae = build(replace(CONFIG, causal_decoder=True))
    latents = vae.encode(pixels(13))
    whole, prefix = vae.decode(latents), vae.decode(latents[:, :, :2])
    torch.testing.assert_close(prefix, whole[:, :, :5], atol=1e-5, rtol=1e-5)


def test_the_usual_decoder_does_look_ahead() -> None:
    vae = build()
    latents = vae.encode(pixels(13))
    assert not torch.allclose(vae.decode(latents[:, :, :2]), vae.decode(latents)[:, :, :5])


def test_frame_count_error_names_the_nearest_values() -> None:
    with pytest.raises(RequestError, match=r"num_frames=7 is not 4 k \+ 1; the nearest are 5 and 9"):
        build().encode(pixels(7))


def test_size_error_names_the_nearest_values() -> None:
    with pytest.raises(RequestError, match="width=20 is not a multiple of 8; the nearest are 16 and 24"):
        build().encode(pixels(width=20))


def test_statistics_that_were_never_loaded_are_loud() -> None:
    assert VideoVAE(CONFIG).encode(pixels()).isnan().all()


def test_statistics_normalise_and_back() -> None:
    statistics = build().per_channel_statistics
    raw = torch.randn(1, 4, 2, 2, 2)
    torch.testing.assert_close(statistics.denormalise(statistics.normalise(raw)), raw)


@pytest.mark.parametrize(("part", "call"), [("encoder", "encode"), ("decoder", "decode")])
def test_an_absent_half_says_so(part: str, call: str) -> None:
    vae = build(**{part: False})
    given = pixels() if call == "encode" else torch.zeros(1, 4, 1, 2, 2)
    with pytest.raises(RuntimeError, match=f"without its {part}"):
        getattr(vae, call)(given)


def test_posterior_sample_has_the_posteriors_spread() -> None:
    posterior = build().posterior(pixels())
    draws = torch.stack([posterior.sample(torch.Generator().manual_seed(i)) for i in range(400)])
    torch.testing.assert_close(draws.mean(0), posterior.mean, atol=0.4, rtol=0.1)
    spread = (0.5 * posterior.log_variance).exp()
    assert ((draws.std(0) / spread - 1).abs() < 0.25).all()


def test_divergence_is_zero_for_the_unit_gaussian_only() -> None:
    posterior = build().posterior(pixels())
    unit = type(posterior)(torch.zeros_like(posterior.mean), torch.zeros_like(posterior.mean))
    assert unit.kl().item() == 0
    assert posterior.kl().item() > 0


@pytest.mark.parametrize("kind", ["uniform", "per_channel", "constant"])
def test_log_variance_covers_all_channels(kind: Any) -> None:
    posterior = build(replace(CONFIG, log_variance=kind)).posterior(pixels())
    assert posterior.log_variance.shape == posterior.mean.shape
    if kind == "constant":
        assert (posterior.log_variance == -30).all()


def test_gradients_reach_every_weight() -> None:
    vae = build().requires_grad_(True)
    vae.decode(
        vae.per_channel_statistics.normalise(vae.posterior(pixels()).sample())
    ).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_half_precision_weights_work() -> None:
    vae = build().bfloat16()
    assert vae.decode(vae.encode(pixels().bfloat16())).dtype == torch.bfloat16


def test_patchify_orders_colour_then_column_then_row() -> None:
    clip = torch.arange(3 * 4 * 4.0).view(1, 3, 1, 4, 4)
    cell = patchify(clip, 4)[0, :, 0, 0, 0]
    assert cell[(1 * 4 + 2) * 4 + 3] == clip[0, 1, 0, 3, 2]
    assert torch.equal(unpatchify(patchify(clip, 4), 4), clip)


def test_space_to_depth_orders_channel_time_row_column() -> None:
    x = torch.arange(2 * 2 * 2 * 2.0).view(1, 2, 2, 2, 2)
    out = space_to_depth(x, (2, 2, 2))[0, :, 0, 0, 0]
    assert out[((1 * 2 + 0) * 2 + 1) * 2 + 0] == x[0, 1, 0, 1, 0]
    assert torch.equal(depth_to_space(space_to_depth(x, (2, 2, 2)), (2, 2, 2)), x)


def test_the_header_round_trips() -> None:
    assert VideoVAEConfig.from_header(CONFIG.to_header()) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "CausalDiffusionVAE"}, "CausalDiffusionVAE"),
        ({"timestep_conditioning": True}, "timestep_conditioning"),
        ({"encoder_blocks": [["res_y", {}]]}, "did you mean 'res_x'"),
        ({"encoder_blocks": [["res_x", 2]]}, r"compresses \(time, space\) by \(1, 1\)"),
        ({"encoder_blocks": []}, "empty"),
        ({"latent_log_var": "unifrm"}, "did you mean 'uniform'"),
    ],
)
def test_headers_of_other_networks_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoVAEConfig.from_header(CONFIG.to_header() | change)


def test_padding_modes_follow_the_header() -> None:
    header = CONFIG.to_header()
    del header["encoder_spatial_padding_mode"], header["decoder_spatial_padding_mode"]
    silent = VideoVAEConfig.from_header(header)
    assert (silent.encoder_padding, silent.decoder_padding) == ("zeros", "reflect")
    both = VideoVAEConfig.from_header(header | {"spatial_padding_mode": "zeros"})
    assert (both.encoder_padding, both.decoder_padding) == ("zeros", "zeros")


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(16, 8, 3), (30, 24, 3), (5, 8, 3), (9, 4, 0), (9, 4, 2)]
)
def test_weights_of_neighbouring_tiles_sum_to_one(length: int, size: int, overlap: int) -> None:
    space, time = torch.zeros(length), torch.zeros(length)
    for i in intervals(length, size, overlap):
        space[i.start : i.end] += space_ramp(i.end - i.start, i.left, i.right)
    for i in time_intervals(length, size, overlap):
        time[i.start : i.end] += time_ramp(i.end - i.start, i.left, i.right)
    torch.testing.assert_close(space, torch.ones(length))
    torch.testing.assert_close(time, torch.ones(length))


def test_intervals_of_the_reference_example() -> None:
    spans = [(i.start, i.end, i.left) for i in time_intervals(16, 8, 3)]
    assert spans == [(0, 8, 0), (4, 13, 4), (9, 16, 4)]


def test_a_clip_in_one_tile_decodes_exactly_as_a_whole() -> None:
    vae = build()
    latents = vae.encode(pixels())
    (frames,) = decode_streamed(vae, latents, DecodePlan(chunk=3, rows=2, columns=3))
    assert torch.equal(frames, vae.decode(latents))
    assert torch.equal(encode_tiled(vae, pixels()), latents)


class NearestVAE(VideoVAE):
    """Codes every cell on its own, so that tiles must give the whole exactly wherever they are cut."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :1, ::4, ::8, ::8].expand(-1, 4, -1, -1, -1)


@pytest.mark.parametrize("frame_overlap", [0, 4, 8])
@pytest.mark.parametrize("overlap", [0, 16])
def test_tiles_are_cut_and_placed_right(frame_overlap: int, overlap: int) -> None:
    vae = NearestVAE(CONFIG)
    tiling = Tiling(size=48, overlap=overlap, num_frames=16, frame_overlap=frame_overlap)
    clip = pixels(33, 56, 96)
    torch.testing.assert_close(encode_tiled(vae, clip, tiling), vae.encode(clip))


def test_tile_sizes_that_do_not_fit_the_grid_are_refused() -> None:
    with pytest.raises(RequestError, match="tile size=44 is not a multiple of 8; the nearest are 40 and 48"):
        Tiling(size=44, overlap=8, num_frames=16, frame_overlap=4).cells(CONFIG.geometry)
    with pytest.raises(RequestError, match="overlap 40 must be between 0 and 32"):
        Tiling(size=64, overlap=40)
