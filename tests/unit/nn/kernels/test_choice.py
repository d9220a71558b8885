import pytest
import torch
from torch import nn

from soundstage.core.errors import RequestError
from soundstage.nn.kernels import choice, plain
from soundstage.nn.kernels.choice import InductorKernels, TorchKernels, TritonKernels, choose_kernels
from soundstage.nn.kernels.plain import ScaleShift
from soundstage.nn.rope import Rope

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_is_plain_off_the_gpu():
    assert choose_kernels("auto", CPU) == TorchKernels()


@pytest.fixture
def installed(monkeypatch):
    """Pretend that Triton is installed and runs on any device; return the means to say otherwise."""

    def pretend(*, is_installed=True, why_no_launch=None):
        monkeypatch.setattr(choice.importlib.util, "find_spec", lambda _: object() if is_installed else None)
        monkeypatch.setattr(choice, "_why_no_launch", lambda _: why_no_launch)

    pretend()
    return pretend


def test_auto_is_triton_on_a_gpu_if_it_is_installed(installed):
    assert choose_kernels("auto", GPU) == TritonKernels()
    installed(is_installed=False)
    assert choose_kernels("auto", GPU) == TorchKernels()


def test_auto_is_plain_where_triton_cannot_start_a_kernel_and_says_so(installed, caplog):
    installed(why_no_launch="Triton cannot start a kernel here (RuntimeError: no C compiler)")
    assert choose_kernels("auto", GPU) == TorchKernels()
    assert "no C compiler" in caplog.text


def test_triton_says_why_it_cannot_run(installed):
    with pytest.raises(RequestError, match="device is cpu"):
        choose_kernels("triton", CPU)
    installed(is_installed=False)
    with pytest.raises(RequestError, match="not installed"):
        choose_kernels("triton", GPU)
    installed(why_no_launch="Triton cannot start a kernel here (RuntimeError: no C compiler)")
    with pytest.raises(RequestError, match=r"cannot run: .*no C compiler.*use 'torch'"):
        choose_kernels("triton", GPU)


def test_whether_a_kernel_starts_is_tried_once_per_device(monkeypatch):
    """On the CPU by Triton's interpreter, which has no compiler to fail."""
    fused, tries = pytest.importorskip("soundstage.nn.kernels.fused"), []
    device = GPU if torch.cuda.is_available() else CPU
    choice._why_no_launch.cache_clear()
    assert choice._why_no_launch(device) is None
    choice._why_no_launch.cache_clear()

    def fail(*_):
        tries.append(1)
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(fused, "gate_add", fail)
    for _ in range(2):
        reason = choice._why_no_launch(device)
        assert reason == "Triton cannot start a kernel here (RuntimeError: Failed to find C compiler.)"
    assert len(tries) == 1
    choice._why_no_launch.cache_clear()
    monkeypatch.setattr(fused, "gate_add", lambda x, *_: x)
    assert "wrong numbers" in choice._why_no_launch(device)
    choice._why_no_launch.cache_clear()


def test_unknown_set_is_refused():
    with pytest.raises(RequestError, match="'cuda' is not one of auto, triton, torch"):
        choose_kernels("cuda", CPU)


def test_triton_set_is_plain_for_calls_it_is_not_made_for():
    x = torch.randn(1, 3, 8, requires_grad=True)
    rows = torch.ones(1, 1, 8)
    got = TritonKernels().norm_modulate(x, rows, rows, 1e-6)
    assert torch.equal(got, TorchKernels().norm_modulate(x, rows, rows, 1e-6))
    assert got.requires_grad
    assert torch.equal(TritonKernels().gate_add(x, rows, x), 2 * x)
    ways = ScaleShift(rows, rows), ScaleShift(2 * rows, rows)
    for one, way in zip(TritonKernels().norm_modulate_twice(x, *ways, 1e-6), ways, strict=True):
        assert torch.equal(one, plain.norm_modulate(x, *way, 1e-6))
    assert TritonKernels().quantise_rows(x.detach()).values.dtype == torch.float8_e4m3fn


def test_a_network_is_given_a_set():
    class Step(nn.Module):
        kernels = TorchKernels()

    network = nn.Sequential(Step(), nn.Linear(2, 2), Step())
    assert choice.use_kernels(network, TritonKernels()) == 2
    assert network[0].kernels == network[2].kernels == TritonKernels()
    assert Step().kernels == TorchKernels()


@pytest.mark.gpu
def test_triton_set_runs_kernels_on_a_gpu(monkeypatch):
    from soundstage.nn.kernels import fused

    called = []
    monkeypatch.setattr(fused, "gate_add", lambda *a, **k: called.append(a) or a[0])
    x = torch.ones(1, 2, 8, device="cuda")
    with torch.no_grad():
        TritonKernels().gate_add(x, x, x)
    assert called


def test_compiled_set_compiles_each_step_once_and_only_where_gradients_flow(monkeypatch):
    """What the compiler makes of a step is its own affair; here it is told to give the step back."""
    compiled = []

    def compile_nothing(step, *, dynamic):
        assert dynamic, "a size more must not cost a compilation more"
        compiled.append(step)
        return step

    monkeypatch.setattr(torch, "compile", compile_nothing)
    choice._compiled.cache_clear()
    x, rows, weight = torch.randn(2, 3, 8, requires_grad=True), torch.ones(2, 1, 8), torch.ones(8)
    rope = Rope(torch.ones(1, 2, 3, 2), torch.zeros(1, 2, 3, 2))
    kernels = InductorKernels()
    for _ in range(2):
        torch.testing.assert_close(
            kernels.norm_modulate(x, rows, rows, 1e-6), plain.norm_modulate(x, rows, rows, 1e-6)
        )
        ways = ScaleShift(rows, rows), ScaleShift(2 * rows, rows)
        torch.testing.assert_close(
            kernels.norm_modulate_twice(x, *ways, 1e-6), plain.norm_modulate_twice(x, *ways, 1e-6)
        )
        torch.testing.assert_close(
            kernels.norm_rope(x, weight, rope, 1e-6), plain.norm_rope(x, weight, rope, 1e-6)
        )
        twice = kernels.norm_rope_both(*[plain.NormRope(x, weight, rope)] * 2, 1e-6)
        torch.testing.assert_close(twice, plain.norm_rope_both(*[plain.NormRope(x, weight, rope)] * 2, 1e-6))
        torch.testing.assert_close(kernels.gate_add(x, rows, x), plain.gate_add(x, rows, x))
    assert compiled == [plain.norm_modulate, plain.norm_modulate_twice, plain.norm_rope, plain.gate_add]
    with torch.no_grad():
        same = x.clone()
        assert kernels.gate_add(same, rows, x, in_place=True) is same
    choice._compiled.cache_clear()
