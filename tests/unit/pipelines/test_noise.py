"""What a seed means."""

import pytest
import torch

from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import AV
from soundstage.pipelines.conditions import VideoGrid, append_keyframe, empty_audio, empty_video, freeze
from soundstage.pipelines.noise import NOISE_ORDERS, NoiseSource, ReferenceNoise, StreamNoise

GRID = VideoGrid.of(VideoGeometry(channels=3), 17, 64, 64, 24.0)


def streams(batch: int = 1, audio_tokens: int = 7) -> AV:
    return AV(empty_video(GRID, batch), empty_audio(AudioGeometry(), audio_tokens, batch))


@pytest.mark.parametrize("order", NOISE_ORDERS)
def test_same_seed_same_noise_and_another_seed_another(order: str) -> None:
    first, again, other = (NOISE_ORDERS[order](seed, torch.float32).initial(streams()) for seed in (3, 3, 4))
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.audio, again.audio)
    assert not torch.equal(first.video, other.video)


@pytest.mark.parametrize("order", NOISE_ORDERS)
def test_source_is_one_and_every_draw_goes_on(order: str) -> None:
    source = NOISE_ORDERS[order](3, torch.float32)
    assert isinstance(source, NoiseSource)
    like = source.initial(streams())
    first, second = source.draw(like, "ancestral"), source.draw(like, "ancestral")
    assert not torch.equal(first.video, second.video)
    assert not torch.equal(first.video, like.video)


@pytest.mark.parametrize("order", NOISE_ORDERS)
def test_later_stage_starts_from_other_noise(order: str) -> None:
    source = NOISE_ORDERS[order](3, torch.float32)
    assert not torch.equal(source.initial(streams()).video, source.initial(streams()).video)


@pytest.mark.parametrize("order", NOISE_ORDERS)
def test_noise_is_a_unit_gaussian(order: str) -> None:
    noise = NOISE_ORDERS[order](3, torch.float32).initial(streams(audio_tokens=200)).audio
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("order", NOISE_ORDERS)
def test_frozen_stream_gets_no_noise(order: str) -> None:
    given = AV(streams().video, freeze(streams().audio, torch.randn(1, 7, 128)))
    assert NOISE_ORDERS[order](3, torch.float32).initial(given).audio is None


def test_one_stream_does_not_shift_the_other() -> None:
    together = StreamNoise(3).initial(streams())
    longer = StreamNoise(3).initial(streams(audio_tokens=90))
    alone = StreamNoise(3).initial(AV(video=streams().video))
    frozen = StreamNoise(3).initial(AV(streams().video, freeze(streams().audio, torch.randn(1, 7, 128))))
    assert torch.equal(together.video, longer.video)
    assert torch.equal(together.video, alone.video)
    assert torch.equal(together.video, frozen.video)


def test_appended_tokens_do_not_shift_the_clip_at_the_start_or_later() -> None:
    state = append_keyframe(streams().video, GRID, torch.randn(1, 3, 1, 2, 2), frame=5)
    plain, conditioned = StreamNoise(3), StreamNoise(3)
    like, longer = plain.initial(streams()), conditioned.initial(AV(video=state))
    assert torch.equal(like.video, longer.video[:, :12])
    for _ in range(2):
        noise = plain.draw(like, "step").video
        assert torch.equal(noise, conditioned.draw(longer, "step").video[:, :12])


def test_item_of_a_batch_has_the_noise_of_the_next_seed() -> None:
    batch = StreamNoise(3)
    noise = batch.initial(streams(batch=2))
    single = StreamNoise(4)
    alone = single.initial(streams())
    assert torch.equal(noise.video[1:], alone.video)
    assert torch.equal(batch.draw(noise, "step").audio[1:], single.draw(alone, "step").audio)


def test_reference_order_is_one_generator_video_first_that_continues() -> None:
    generator = torch.Generator().manual_seed(5)
    expected = [torch.randn(1, 12, 3, generator=generator), torch.randn(1, 7, 128, generator=generator)]
    continued = torch.randn(1, 12, 3, generator=generator)
    source = ReferenceNoise(5)
    noise = source.initial(streams())
    assert torch.equal(noise.video, expected[0])
    assert torch.equal(noise.audio, expected[1])
    assert torch.equal(source.initial(streams()).video, continued)


def test_reference_order_counts_frozen_streams() -> None:
    given = AV(freeze(streams().video, torch.randn(1, 12, 3)), streams().audio)
    assert torch.equal(ReferenceNoise(5).initial(given).audio, ReferenceNoise(5).initial(streams()).audio)


def test_reference_noise_of_res_2s_does_not_depend_on_the_seed_and_ancestral_does() -> None:
    like = AV(torch.zeros(1, 4, 3))
    first, second = ReferenceNoise(1), ReferenceNoise(2)
    for purpose in ("step", "substep"):
        assert torch.equal(first.draw(like, purpose).video, second.draw(like, purpose).video)
    assert not torch.equal(first.draw(like, "ancestral").video, second.draw(like, "ancestral").video)


def test_reference_noise_is_drawn_in_the_number_format_of_the_network() -> None:
    half = ReferenceNoise(5, torch.bfloat16).initial(streams()).video
    assert half.dtype == torch.float32
    assert torch.equal(half, half.bfloat16().float())
