import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from soundstage.core.errors import RequestError, ResourceError
from soundstage.nn import attention_backends
from soundstage.nn.attention_backends import ATTENTION, PRODUCTS, SDPA, choose_attention, use_attention

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HERE = [name for name, backend in ATTENTION.items() if backend.why_not(CPU, torch.float32) is None]


def draw(n=6, s=9, d=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 2, n, d), (1, 2, s, d), (1, 2, s, d))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def by_hand(q, k, v, bias=None):
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    return ((scores if bias is None else scores + bias).softmax(-1) @ v.double()).float()


def test_a_backend_is_filed_under_its_name():
    assert [backend.name for backend in ATTENTION.values()] == list(ATTENTION)


def test_without_a_gpu_pytorchs_own_remain():
    assert HERE == ["sdpa", "flash", "math"]


@pytest.mark.parametrize("backend", [*(ATTENTION[name] for name in HERE), PRODUCTS], ids=lambda b: b.name)
@pytest.mark.parametrize("biased", [False, True])
def test_backends_attend(backend, biased):
    q, k, v = draw()
    bias = torch.randn(1, 1, 6, 9) if biased else None
    assert float((backend.attend(q, k, v, bias) - by_hand(q, k, v, bias)).abs().max()) < 1e-5


def test_written_out_attention_has_the_gradients_of_pytorchs():
    gradients = []
    for backend in (PRODUCTS, SDPA):
        given = [part.requires_grad_() for part in draw()]
        backend.attend(*given).square().sum().backward()
        gradients.append([part.grad for part in given])
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_what_ran_is_named():
    q, k, v = draw()
    assert ATTENTION["math"].ran(q, k, v) == "math"
    assert ATTENTION["sdpa"].ran(q, k, v) in ("flash", "math")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert ATTENTION["sdpa"].ran(q, k, v) == "math"


def test_a_kernel_that_cannot_take_a_call_says_so():
    q, k, v = draw()
    with pytest.raises(ResourceError, match=r"'cudnn' cannot take queries of \(1, 2, 6, 8\)"):
        ATTENTION["cudnn"].attend(q, k, v)


@pytest.mark.parametrize("name", [name for name in ATTENTION if name not in HERE])
def test_what_is_missing_is_refused_with_the_reason_and_what_there_is(name):
    reason = "needs a GPU" if name in ("cudnn", "efficient") else "is not installed"
    with pytest.raises(RequestError, match=rf"'{name}' cannot run: .*{reason}.*; here there is auto, sdpa"):
        choose_attention(name, CPU, torch.float32)


def test_unknown_backend_is_refused():
    with pytest.raises(RequestError, match="'fast' is not one of auto, sdpa, flash"):
        choose_attention("fast", CPU, torch.float32)


def gpu(monkeypatch, capability, installed=()):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(attention_backends, "_is_installed", lambda module: module in installed)


@pytest.mark.parametrize(
    ("capability", "installed", "chosen"),
    [
        ((9, 0), (), "sdpa"),
        ((9, 0), ("flash_attn_interface",), "flash3"),
        ((9, 0), ("flash_attn.cute", "sageattention"), "sdpa"),
        ((10, 0), ("flash_attn.cute",), "flash4"),
        ((8, 9), ("flash_attn_interface", "sageattention"), "sdpa"),
        ((12, 0), (), "sdpa"),
    ],
)
def test_auto_takes_the_fastest_exact_one(monkeypatch, capability, installed, chosen):
    gpu(monkeypatch, capability, installed)
    for name in installed:
        module = types.ModuleType(name)
        module.flash_attn_func = module.sageattn = lambda q, k, v: v
        monkeypatch.setitem(sys.modules, name, module)
    backend = choose_attention("auto", GPU, torch.bfloat16)
    assert backend.name == chosen
    assert backend.exact
    assert choose_attention("auto", GPU, torch.float32).name == "sdpa"


def test_a_package_that_is_there_but_broken_is_refused_and_auto_does_without(monkeypatch, tmp_path):
    (tmp_path / "flash_attn_interface.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    gpu(monkeypatch, (9, 0), ("flash_attn_interface",))
    assert choose_attention("auto", GPU, torch.bfloat16) is SDPA
    with pytest.raises(RequestError, match=r"installed but cannot be used \(undefined symbol: _ZN3c10\)"):
        choose_attention("flash3", GPU, torch.bfloat16)


def test_cudnn_is_not_given_calls_with_a_single_key():
    """It refuses them; the sound of a clip of one frame is one token."""

    class OnGpu(torch.Tensor):
        is_cuda = True

    q, k, _ = (part.as_subclass(OnGpu) for part in draw(s=1))
    assert not ATTENTION["cudnn"]._takes(q, k, None)
    assert ATTENTION["cudnn"]._takes(q, q, None)
    assert not ATTENTION["flash"]._takes(q, q, torch.zeros(1, 1, 6, 6))


def test_auto_is_pytorchs_choice_off_the_gpu():
    assert choose_attention("auto", CPU, torch.bfloat16) is SDPA


@pytest.fixture
def flash3(monkeypatch):
    """A stand-in for the package, which returns the scores' norms too, as some of its versions do."""
    calls = []

    def flash_attn_func(q, k, v):
        calls.append(q.shape)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2), None

    module = types.ModuleType("flash_attn_interface")
    module.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    monkeypatch.setattr(attention_backends, "_is_installed", lambda name: name == "flash_attn_interface")
    return calls


def test_installed_attention_is_called_in_its_own_layout(flash3):
    q, k, v = draw(d=64, dtype=torch.bfloat16)
    got = ATTENTION["flash3"].attend(q, k, v)
    assert flash3 == [(1, 6, 2, 64)]
    assert float((got.float() - by_hand(q, k, v)).abs().max()) < 0.02
    assert ATTENTION["flash3"].ran(q, k, v) == "flash3"


def test_calls_that_a_package_is_not_made_for_go_to_pytorch(flash3):
    q, k, v = draw(d=64, dtype=torch.bfloat16)
    bias = torch.zeros(1, 1, 6, 9, dtype=torch.bfloat16)
    ATTENTION["flash3"].attend(q, k, v, bias)
    ATTENTION["flash3"].attend(*draw(d=64))
    ATTENTION["flash3"].attend(*draw(d=80, dtype=torch.bfloat16))
    assert flash3 == []
    assert ATTENTION["flash3"].ran(q, k, v, bias) in ("flash", "math")


def test_approximate_attention_is_for_long_sequences():
    q, k, v = draw(n=2048, s=1024, d=64, dtype=torch.bfloat16)
    assert not ATTENTION["sage"].exact
    assert ATTENTION["sage"].ran(q, k, v) != "sage"
    assert ATTENTION["sage"].ran(q, q, q) == "sage"


def test_a_network_is_given_a_backend():
    class Layer(nn.Module):
        attention_backend = SDPA

    network = nn.Sequential(Layer(), nn.Linear(2, 2), nn.Sequential(Layer()))
    assert use_attention(network, ATTENTION["math"]) == 2
    assert network[2][0].attention_backend is ATTENTION["math"]
    assert Layer().attention_backend is SDPA


@pytest.mark.gpu
@pytest.mark.parametrize("name", ATTENTION)
def test_backends_attend_on_a_gpu(name):
    if (reason := ATTENTION[name].why_not(torch.device("cuda", 0), torch.bfloat16)) is not None:
        pytest.skip(reason)
    q, k, v = (part.cuda() for part in draw(n=2048, s=2048, d=128, dtype=torch.bfloat16))
    error = (ATTENTION[name].attend(q, k, v).float() - by_hand(q, k, v).to("cuda")).abs().max()
    assert float(error) < (0.01 if ATTENTION[name].exact else 0.05)
    assert ATTENTION[name].ran(q, k, v) == name or name == "sdpa"
