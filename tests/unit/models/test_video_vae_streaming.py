"""The video decoder, chunk after chunk: the same pixels as at once, in memory that does not grow."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.autograd.profiler import profile

from soundstage.core.errors import ResourceError
from soundstage.models.video_vae.config import Block, VideoVAEConfig
from soundstage.models.video_vae.decode_plan import (
    ENOUGH_FOR_GPU,
    DecodePlan,
    decoding_bytes,
    plan_decoding,
)
from soundstage.models.video_vae.model import VideoVAE
from soundstage.models.video_vae.streaming import decode_in_chunks
from soundstage.models.video_vae.tiling import decode_streamed

CONFIG = VideoVAEConfig(
    latent_channels=4,
    encoder_base_channels=4,
    decoder_base_channels=4,
    encoder_blocks=(
        Block(kind="compress_time_res", multiplier=1),
        Block(kind="compress_all_res", multiplier=1),
        Block(kind="compress_space_res", multiplier=1),
    ),
    decoder_blocks=(
        Block(kind="res_x", num_layers=2),
        Block(kind="compress_time", multiplier=1, residual=True),
        Block(kind="res_x", num_layers=1),
        Block(kind="compress_all", multiplier=2, residual=True),
        Block(kind="compress_space", multiplier=1),
    ),
    decoder_padding="reflect",
)  # 4 frames and 16 × 16 pixels per cell; both kinds of shortcut


def build(config: VideoVAEConfig = CONFIG, dtype: torch.dtype = torch.float64) -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(config, encoder=False).eval().requires_grad_(False)
    vae.per_channel_statistics.get_buffer("mean-of-means").copy_(torch.linspace(-1, 1, 4))
    vae.per_channel_statistics.get_buffer("std-of-means").copy_(torch.linspace(0.5, 2, 4))
    return vae.to(dtype)


def latents(frames: int, rows: int = 3, columns: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, frames, rows, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize(
    "changes", [{}, {"causal_decoder": True}, {"decoder_padding": "zeros"}], ids=["mirror", "causal", "zeros"]
)
def test_chunks_give_the_whole_clip(chunk: int, frames: int, changes: dict[str, object]) -> None:
    vae = build(replace(CONFIG, **changes))
    z = latents(frames)
    parts = list(decode_in_chunks(vae, z, chunk))
    torch.testing.assert_close(torch.cat(parts, dim=2), vae.decode(z), atol=1e-12, rtol=1e-12)


def test_a_clip_in_one_chunk_is_the_whole_clip_bit_for_bit() -> None:
    vae = build(dtype=torch.float32)
    z = latents(5).float()
    (part,) = decode_in_chunks(vae, z, 5)
    assert torch.equal(part, vae.decode(z))


OFFICIAL = VideoVAEConfig(  # the blocks of LTX-2.0, narrower and fewer
    latent_channels=8,
    encoder_base_channels=4,
    decoder_base_channels=16,
    encoder_blocks=(Block(kind="compress_all_res", multiplier=2),) * 3,
    decoder_blocks=(
        Block(kind="res_x", num_layers=2),
        Block(kind="compress_all", multiplier=2, residual=True),
        Block(kind="res_x", num_layers=2),
        Block(kind="compress_all", multiplier=2, residual=True),
        Block(kind="res_x", num_layers=2),
        Block(kind="compress_all", multiplier=2, residual=True),
        Block(kind="res_x", num_layers=2),
    ),
)

RELEASED = replace(OFFICIAL, latent_channels=128, decoder_base_channels=128)


def live_bytes(work: Callable[[], object]) -> int:
    """Run some work and return the most bytes of tensors that it held at once."""
    with profile(profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def decode_and_drop(vae: VideoVAE, z: torch.Tensor, plan: DecodePlan) -> None:
    for part in decode_streamed(vae, z, plan):
        del part


def test_memory_does_not_grow_with_the_clip_and_is_as_predicted() -> None:
    torch.manual_seed(0)
    vae = VideoVAE(OFFICIAL, encoder=False).requires_grad_(False)
    vae.per_channel_statistics.get_buffer("mean-of-means").zero_()
    vae.per_channel_statistics.get_buffer("std-of-means").fill_(1)
    weights = max(p.nbytes for p in vae.parameters())  # oneDNN lays out those of a convolution anew
    peaks = {}
    for frames in (12, 24):
        z = torch.zeros(1, 8, frames, 4, 5)
        plan = DecodePlan(chunk=2, rows=4, columns=5)
        peaks[frames] = live_bytes(lambda z=z, plan=plan: decode_and_drop(vae, z, plan)) - weights
        predicted = decoding_bytes(OFFICIAL, (frames, 4, 5), plan, 4)
        assert 0.5 * predicted < peaks[frames] < predicted
    assert peaks[24] == pytest.approx(peaks[12], rel=0.02)


def test_the_largest_chunk_that_fits_is_chosen_and_tiles_come_last() -> None:
    cells = (16, 22, 40)  # 121 frames of 1280 x 704
    wide = dataclasses.replace(OFFICIAL, decoder_base_channels=128)  # narrow ones gain nothing by tiles

    def chosen(budget: int, enough: int | None = None) -> tuple[int, int, int]:
        plan = plan_decoding(wide, cells, itemsize=2, budget=budget, enough=enough)
        assert plan.num_bytes <= budget
        return plan.chunk, plan.rows, plan.columns

    assert chosen(2**36) == (16, 22, 40)
    assert chosen(2**36, enough=2**32)[0] < 16
    one = decoding_bytes(wide, cells, DecodePlan(chunk=1, rows=22, columns=40), 2)
    assert chosen(one) == (1, 22, 40)
    assert chosen(one, enough=2**20) == (1, 22, 40)
    chunk, rows, columns = chosen(one - 1)
    assert (chunk, rows) == (1, 22)
    assert 20 < columns < 40
    with pytest.raises(ResourceError, match=r"takes at least \d+ MiB and 1 MiB are free"):
        chosen(2**20)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (22, 40), (34, 60)])
def test_longer_clips_are_not_decoded_in_longer_chunks_however_much_memory_there_is(
    rows: int, columns: int
) -> None:
    """Chunks that grew with the memory of the device would be rounded by what is free just now."""
    plans = [
        plan_decoding(RELEASED, (frames, rows, columns), itemsize=2, budget=budget)
        for frames in (121, 241, 481)
        for budget in (2**33, 2**36, 2**40)
    ]
    assert len({plan.chunk for plan in plans}) == 1
    assert max(plan.num_bytes for plan in plans) <= 1.1 * ENOUGH_FOR_GPU


def test_tiles_are_cut_and_placed_right() -> None:
    vae = build()
    for name, weight in vae.named_parameters():
        if name.endswith("conv.weight"):  # every cell decodes by itself
            weight.flatten(2)[..., torch.arange(27) != 13] = 0
    z = latents(5, 7, 12)
    plan = DecodePlan(chunk=2, rows=4, columns=6, overlap=2)
    tiled = torch.cat(list(decode_streamed(vae, z, plan)), dim=2)
    torch.testing.assert_close(tiled, vae.decode(z), atol=1e-6, rtol=0)  # ramps are float32


def test_tiles_of_a_real_decoder_agree_away_from_their_borders() -> None:
    vae = build()
    z = latents(3, 2, 24)
    tiled = torch.cat(list(decode_streamed(vae, z, DecodePlan(chunk=2, rows=2, columns=14))), dim=2)
    whole = vae.decode(z)
    far = 16 * 2  # what two cells away see of the border is next to nothing here
    for side in (slice(0, 16 * 10 - far), slice(16 * 14 + far, None)):
        torch.testing.assert_close(tiled[..., side], whole[..., side], atol=1e-3, rtol=0)
    assert (tiled - whole).abs().max() > 1e-6
