"""Recording attention between the streams: the right numbers, and no trace in the clip."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tiny
from soundstage.checkpoints import keymap
from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import AV
from soundstage.diffusion.guidance import GuidancePlan
from soundstage.pipelines import attention_recorder
from soundstage.pipelines.attention_recorder import AttentionMaps, AttentionRecorder
from soundstage.pipelines.conditions import VideoGrid, append_keyframe, empty_audio, empty_video
from soundstage.pipelines.denoiser import TransformerDenoiser
from soundstage.pipelines.pipeline import Pipeline
from soundstage.pipelines.text_conditioning import Contexts

GRID = VideoGrid.of(VideoGeometry(channels=4), 17, 64, 96, 24.0)  # 3 frames of 2 x 3 tokens
AUDIO = AudioGeometry(channels=1)
SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.5, 0.3, 0.1, 0.0])
SMALL = {"num_frames": 17, "width": 32, "height": 16, "num_inference_steps": 3}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states() -> AV:
    return AV(empty_video(GRID), empty_audio(AUDIO, 7))


def contexts() -> Contexts:
    return Contexts(
        prompt=AV(noise(1, 3, 24, seed=1), noise(1, 3, 16, seed=1)),
        negative=AV(noise(1, 3, 24, seed=2), noise(1, 3, 16, seed=2)),
    )


def record(
    sigmas: tuple[float, ...] = (0.6,), passes: tuple[str, ...] = ("cond",), streams: AV | None = None,
    steps: tuple[int, ...] | None = None, **options: Any,
) -> AttentionMaps:  # fmt: skip
    model = tiny.modules("2.3")[keymap.TRANSFORMER]
    streams = states() if streams is None else streams
    recorder = AttentionRecorder(steps)
    recorder.begin(SIGMAS, streams, GRID, model.config.num_layers)
    denoiser = TransformerDenoiser(model, streams, contexts(), GuidancePlan(), recorder=recorder, **options)
    noisy = streams.map(lambda state: noise(*state.latents.shape, seed=7))
    for sigma in sigmas:
        denoiser(noisy, sigma, passes)
    return recorder.maps()


def test_shares_of_a_row_add_up_to_one() -> None:
    maps = record()
    torch.testing.assert_close(maps.look.sum((1, 2, 3)), torch.ones(7))
    torch.testing.assert_close(maps.looking.sum(-1), torch.ones(2, 7))
    torch.testing.assert_close(maps.listening.sum(-1), torch.ones(2, 3))
    assert maps.look.shape == (7, 3, 2, 3)
    assert maps.listen_time.shape == (2, 2, 18)
    assert ((maps.look_time > 0) & (maps.look_time < maps.duration)).all()


def test_shares_are_those_that_the_network_mixes_values_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the attention computes from q, k and v is compared with the recorded shares times the values."""
    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    attend = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        out = attend(q, k, v, **options)
        calls.append((q, k, v, out.clone()))  # gated where it lies, afterwards
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    maps = record()
    crossing = [call for call in calls if call[0].shape[2] == 7 and call[1].shape[2] == 18]
    assert len(crossing) == 2, "sound reads the picture once per block"
    for block, (q, k, v, out) in enumerate(crossing):
        shares = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        torch.testing.assert_close(shares @ v, out)
        per_frame = shares[0].mean(0).view(7, 3, 6).sum(-1)
        torch.testing.assert_close(maps.looking[block], per_frame)
        times = shares[0] @ maps.video_times.mean(-1).repeat_interleave(6)
        torch.testing.assert_close(maps.look_time[block], times)


@pytest.mark.parametrize("together", [True, False])
def test_only_the_conditional_pass_is_recorded(together: bool) -> None:
    alone = record()
    among = record(passes=("uncond", "cond"), rows_at_once=4 if together else 1)
    torch.testing.assert_close(among.look, alone.look)
    torch.testing.assert_close(among.listen_time, alone.listen_time)


def test_strips_of_queries_give_the_same_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = record()
    monkeypatch.setattr(attention_recorder, "STRIP", 2 * 18 * 2)
    strips = record()
    torch.testing.assert_close(strips.listening, whole.listening)
    torch.testing.assert_close(strips.look, whole.look)


def test_appended_tokens_are_left_out() -> None:
    more = AV(append_keyframe(states().video, GRID, noise(1, 4, 1, 2, 3), frame=8), states().audio)
    maps = record(streams=more)
    assert maps.look.shape == (7, 3, 2, 3)
    torch.testing.assert_close(maps.look.sum((1, 2, 3)), torch.ones(7))


def test_steps_are_averaged_and_others_are_not_looked_at() -> None:
    first, second = record(sigmas=(0.6,)), record(sigmas=(0.5,))
    both = record(sigmas=(1.0, 0.9, 0.6, 0.5, 0.3, 0.1))
    assert both.steps == (2, 3), "the middle third of six"
    torch.testing.assert_close(both.looking, (first.looking + second.looking) / 2)
    last = record(sigmas=(0.6, 0.1), steps=(5,))
    torch.testing.assert_close(last.looking, record(sigmas=(0.1,), steps=(5,)).looking)


def test_distance_is_between_where_attention_lies_and_the_own_time() -> None:
    times = torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    maps = AttentionMaps(
        look=torch.full((2, 2, 1, 1), 0.5),
        looking=torch.full((1, 2, 2), 0.5),
        listening=torch.full((1, 2, 2), 0.5),
        look_time=torch.tensor([[[0.5, 0.5]]]),
        listen_time=torch.tensor([[[1.0, 1.0]]]),
        audio_times=times,
        video_times=times,
        steps=(0,),
    )
    assert maps.distance("audio").tolist() == [[[0.0, 1.0]]]
    assert maps.distance("video").tolist() == [[[0.5, 0.5]]]
    assert maps.chance("audio").tolist() == [0.5, 0.5]
    assert maps.duration == 2


def test_only_the_first_stage_is_recorded() -> None:
    recorder = AttentionRecorder()
    recorder.begin(SIGMAS, states(), GRID, 2)
    assert recorder.watch(0.6) is not None
    recorder.begin(SIGMAS, states(), GRID, 2)
    assert recorder.watch(0.6) is None


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(RequestError, match="attention step 6 does not exist; this run's are 0 to 5"):
        AttentionRecorder((6,)).begin(SIGMAS, states(), GRID, 2)
    with pytest.raises(RequestError, match="one is absent"):
        AttentionRecorder().begin(SIGMAS, AV(video=states().video), GRID, 2)
    with pytest.raises(RequestError, match="no attention was recorded"):
        AttentionRecorder().maps()


def test_recording_leaves_the_clip_as_it_is(tiny_model: Path) -> None:
    pipeline = Pipeline.load(tiny_model, device="cpu")
    recorder = AttentionRecorder()
    plain = pipeline("a red ball bounces", seed=3, **SMALL)
    watched = pipeline("a red ball bounces", seed=3, attention=recorder, **SMALL)
    assert torch.equal(plain.pixels, watched.pixels)
    assert torch.equal(plain.waveform, watched.waveform)
    assert recorder.maps().steps == (1,)


def test_run_without_a_recorder_computes_no_shares(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("nobody asked")

    monkeypatch.setattr("soundstage.nn.attention.Attention.shares", fail)
    Pipeline.load(tiny_model, device="cpu")("a red ball bounces", **SMALL)
