import pytest
import torch
from torch.backends import cudnn
from torch.backends.cuda import matmul

from soundstage.runtime.precision import full_float32

PLACES = (cudnn.conv, cudnn.rnn, matmul)


def precisions():
    return [place.fp32_precision for place in PLACES]


@pytest.fixture(autouse=True)
def _flags_come_back():
    before = precisions()
    yield
    cudnn.allow_tf32 = True
    for place, precision in zip(PLACES, before, strict=True):
        if place.fp32_precision != precision:
            place.fp32_precision = precision


def test_tf32_is_off_inside_and_as_it_was_outside():
    assert cudnn.allow_tf32, "PyTorch's default"
    before = precisions()
    with full_float32():
        assert "tf32" not in precisions()
        assert not cudnn.allow_tf32
        assert not matmul.allow_tf32
        with cudnn.flags(enabled=True):  # code that reads the older switch goes on working
            pass
    assert precisions() == before
    assert cudnn.allow_tf32


@pytest.mark.parametrize("conv", ["tf32", "ieee"])
@pytest.mark.parametrize("products", ["tf32", "ieee"])
def test_what_was_chosen_by_the_newer_switch_comes_back(conv, products):
    cudnn.conv.fp32_precision, matmul.fp32_precision = conv, products
    chosen = precisions()
    with full_float32():
        assert "tf32" not in precisions()
    assert precisions() == chosen


def test_what_was_chosen_by_the_older_switch_comes_back():
    cudnn.allow_tf32, matmul.allow_tf32 = False, True
    with full_float32():
        assert "tf32" not in precisions()
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, True)
    matmul.allow_tf32 = False


def test_flags_come_back_after_an_error_and_from_within_another_scope():
    before, seen = precisions(), []

    def fail():
        with full_float32():
            with full_float32():
                pass
            seen.extend(precisions())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen
    assert "tf32" not in seen
    assert precisions() == before


def test_scopes_of_two_threads_that_overlap_leave_everything_as_it_was():
    before, seen = precisions(), []
    first, second = full_float32(), full_float32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # the first ends while the second is at work
    seen += precisions()
    second.__exit__(None, None, None)
    assert "tf32" not in seen
    assert precisions() == before
    assert cudnn.allow_tf32


@pytest.mark.gpu
def test_convolutions_on_a_gpu_are_exact():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=generator) for size in ((1, 64, 4096), (64, 64, 7)))
    wanted = torch.nn.functional.conv1d(x.double(), weight.double())
    with full_float32():
        got = torch.nn.functional.conv1d(x.cuda(), weight.cuda())
    assert float((got.cpu() - wanted).abs().max() / wanted.abs().max()) < 1e-5
