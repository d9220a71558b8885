"""HDR light on a display of ordinary range."""

import pytest
import torch

from soundstage.media.tone import to_sdr


def pq(nits):
    """The perceptual quantiser, ST 2084 equation 5.2."""
    y = (torch.as_tensor(nits, dtype=torch.float64) / 10_000) ** (2610 / 16384)
    return (((3424 / 4096) + (2413 / 128) * y) / (1 + (2392 / 128) * y)) ** (2523 / 32)


def grey(codes):
    return codes.float()[None, :, None].expand(1, -1, 3).contiguous()


def test_a_white_page_is_nearly_white_and_dim_light_is_left_alone():
    shown = to_sdr(grey(pq([0.0, 20.3, 101.5, 203.0])), "pq")[0, :, 1].tolist()
    srgb = [
        0,
        round((1.055 * 0.1 ** (1 / 2.4) - 0.055) * 255),
        round((1.055 * 0.5 ** (1 / 2.4) - 0.055) * 255),
    ]
    assert shown[:3] == pytest.approx(srgb, abs=1)
    assert 235 <= shown[3] <= 245


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_more_light_is_never_darker_and_grey_stays_grey(transfer):
    shown = to_sdr(grey(torch.linspace(0, 1, 300)), transfer)[0].int()
    assert (shown.diff(dim=0) >= 0).all()
    assert (shown.amax(1) - shown.amin(1)).max() <= 1
    assert shown[0].max() == 0
    assert shown[-1].min() >= 250


def test_hlg_shows_graphics_white_like_pq():
    """BT.2408 table 1: a white page has 75 % in HLG and 58 % in PQ."""
    hlg = to_sdr(grey(torch.tensor([0.75])), "hlg").int()
    assert (hlg - to_sdr(grey(torch.tensor([0.581])), "pq").int()).abs().max() <= 3


def test_a_bright_colour_keeps_its_hue():
    light = torch.tensor([[[900.0, 300.0, 300.0]]])
    red, green, blue = to_sdr(pq(light).float(), "pq")[0, 0].tolist()
    assert red > 230
    assert 60 < green < red - 60
    assert abs(green - blue) < 40
