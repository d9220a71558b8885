"""Triton's interpreter, which stands in for a GPU, made to round as one."""

import importlib.util

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def rounding(monkeypatch):
    """Let the interpreter round as GPUs do; its own way loses the carry: 127.8 becomes 64, not 128."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    formats = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp8e4nv": torch.float8_e4m3fn,
    }

    def convert(numbers, source, target, mode):
        raw = torch.from_numpy(np.ascontiguousarray(numbers)).view(formats[str(source)])
        unsigned = getattr(np, f"uint{target.primitive_bitwidth}")
        signed = getattr(torch, f"int{target.primitive_bitwidth}")
        return raw.to(formats[str(target)]).view(signed).numpy().view(unsigned)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
