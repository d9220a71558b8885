"""Every channel layout becomes two channels without clipping."""

import pytest
import torch

from soundstage.core.errors import RequestError
from soundstage.dsp.channels import GAINS, USUAL, to_stereo


def channel(count: int, index: int) -> torch.Tensor:
    waveform = torch.zeros(1, count, 4)
    waveform[:, index] = 1
    return waveform


def test_stereo_is_left_alone() -> None:
    waveform = torch.randn(2, 2, 5)
    assert to_stereo(waveform) is waveform


def test_mono_is_doubled() -> None:
    waveform = torch.randn(2, 1, 5)
    assert torch.equal(to_stereo(waveform), waveform.expand(-1, 2, -1))


@pytest.mark.parametrize(("count", "total"), [(6, 2.414), (8, 3.121)])
def test_surround_uses_the_usual_gains(count: int, total: float) -> None:
    gains = torch.stack([to_stereo(channel(count, i))[0, :, 0] for i in range(count)])
    side = 0.707 / total
    assert gains[0].tolist() == pytest.approx([1 / total, 0])
    assert gains[1].tolist() == pytest.approx([0, 1 / total])
    assert gains[2].tolist() == pytest.approx([side, side])
    assert gains[3].tolist() == [0, 0]  # low-frequency effects
    for left, right in zip(range(4, count, 2), range(5, count, 2), strict=True):
        assert gains[left].tolist() == pytest.approx([side, 0])
        assert gains[right].tolist() == pytest.approx([0, side])


@pytest.mark.parametrize("count", [*USUAL, 3, 4, 5, 7])
def test_full_scale_everywhere_stays_full_scale(count: int) -> None:
    torch.testing.assert_close(to_stereo(torch.ones(1, count, 4)), torch.ones(1, 2, 4))


def test_other_layouts_become_their_mean() -> None:
    waveform = torch.randn(1, 5, 4)
    torch.testing.assert_close(to_stereo(waveform)[:, 0], waveform.mean(1))


def test_named_channels_are_mixed_by_name_in_any_order() -> None:
    names = ("FC", "SL", "FL", "FR")
    left, right = to_stereo(torch.eye(4)[None], names)[0]
    torch.testing.assert_close(left, torch.tensor([0.707, 0.707, 1, 0]) / 2.414)
    torch.testing.assert_close(right, torch.tensor([0.707, 0, 0, 1]) / 1.707)


def test_sides_mirror_each_other() -> None:
    for name, gains in GAINS.items():
        if name.endswith("L") or name == "FLC":
            assert GAINS[name[: name.rindex("L")] + "R" + name[name.rindex("L") + 1 :]] == gains[::-1]


def test_unknown_names_become_their_mean() -> None:
    waveform = torch.randn(1, 3, 4)
    assert torch.equal(to_stereo(waveform, ("A", "B", "C")), to_stereo(waveform, None))


def test_no_channel_is_an_error() -> None:
    with pytest.raises(RequestError, match="no channels"):
        to_stereo(torch.zeros(1, 0, 4))
