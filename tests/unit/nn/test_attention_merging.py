"""Attention over parts of the keys, put together, is attention over all of them."""

import pytest
import torch
from torch.nn import functional as F

from soundstage.nn import attention_merging
from soundstage.nn.attention_merging import KERNELS, attend_to_part, merge, part_kernel

ON_CPU = ("flash-cpu", "math")


def tensors(num_keys: int = 11, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((2, 3, 7, 12), (2, 3, num_keys, 12), (2, 3, num_keys, 12))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def bias_of(kind: str, num_keys: int = 11) -> torch.Tensor | None:
    if kind == "none":
        return None
    shape = {"per key": (1, 1, 1, num_keys), "per pair": (2, 1, 7, num_keys)}[kind]
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    bias[..., 2:6] = torch.finfo(torch.float32).min  # a part in which nothing is to be seen
    return bias


@pytest.mark.parametrize("kind", ["none", "per key", "per pair"])
@pytest.mark.parametrize("kernel", ON_CPU)
def test_parts_put_together_are_the_whole(kernel: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_merging, "SCORE_BYTES", 4 * 2 * 3 * 11 * 2)  # two queries at a time
    q, k, v = tensors()
    bias = bias_of(kind)
    heard = None
    for keys in (slice(2, 6), slice(6, 11), slice(0, 2)):
        shown = None if bias is None else bias[..., keys]
        part = KERNELS[kernel](q, k[..., keys, :], v[..., keys, :], shown)
        heard = part if heard is None else merge(heard, part)
    assert heard is not None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(heard.values, expected, atol=2e-6, rtol=0)  # rounding of sums of 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_a_device_takes_says_the_sums_of_its_scores(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype=dtype)
    part = attend_to_part(q, k, v)
    scores = q.float() @ k.float().transpose(-1, -2) * 12**-0.5
    assert part.log_sums.dtype == torch.float32
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2  # of the inputs' own numbers
    torch.testing.assert_close(part.log_sums, scores.logsumexp(-1), atol=tolerance, rtol=0)
    torch.testing.assert_close(part.values.float(), scores.softmax(-1) @ v.float(), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "has_bias", "kernel"),
    [
        ("cpu", torch.float32, 12, True, "flash-cpu"),
        ("cuda", torch.bfloat16, 128, False, "flash"),
        ("cuda", torch.float32, 64, False, "efficient"),
        ("cuda", torch.bfloat16, 128, True, "math"),
        ("cuda", torch.bfloat16, 12, False, "math"),
        ("mps", torch.float16, 64, False, "math"),
    ],
)
def test_kernels_are_chosen_by_what_they_take(
    device: str, dtype: torch.dtype, head_dim: int, has_bias: bool, kernel: str
) -> None:
    assert part_kernel(torch.device(device), dtype, head_dim, has_bias=has_bias) == kernel
    assert kernel in KERNELS


def test_the_kernels_of_a_gpu_are_called_as_pytorch_declares_them() -> None:
    """On tensors without memory: shapes, names and order of arguments and results."""
    q, k, v = (torch.empty(2, 3, n, 64, device="meta", dtype=torch.bfloat16) for n in (7, 11, 11))
    for name in ("flash", "efficient"):
        part = KERNELS[name](q, k, v, None)
        assert part.values.shape == q.shape
        assert part.log_sums.shape == q.shape[:-1]
        assert part.log_sums.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_parts_put_together_on_a_gpu_are_the_whole(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 70, 64, generator=generator).cuda().to(dtype) for _ in range(3))
    parts = [attend_to_part(q, k[..., keys, :], v[..., keys, :]) for keys in (slice(0, 33), slice(33, 70))]
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # of bfloat16 results near one
    torch.testing.assert_close(merge(*parts).values, expected, atol=tolerance, rtol=0)
