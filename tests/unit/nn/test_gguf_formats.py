"""The block formats of GGUF decode to what the `gguf` package says they are."""

import numpy as np
import pytest
import torch

from soundstage.nn.gguf_formats import BLOCK_FORMATS, decode_rows

gguf = pytest.importorskip("gguf")
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2)}


def some_rows(name, rows=6, blocks=3):
    """Random bytes, with half-precision scales of a sensible size where the format has them."""
    form, generator = BLOCK_FORMATS[name], np.random.default_rng(0)
    made = generator.integers(0, 256, (rows * blocks, form.num_bytes), dtype=np.uint8)
    for start in HALVES.get(name, (0, 2) if name.endswith("_1") else (0,)):
        scales = generator.uniform(-0.1, 0.1, rows * blocks).astype(np.float16)
        made[:, start : start + 2] = scales[:, None].view(np.uint8)
    return made.reshape(rows, -1)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_bytes_mean_what_the_package_says(name):
    rows = some_rows(name)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    got = decode_rows(name, torch.from_numpy(rows))
    assert got.shape == expected.shape
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_sizes_are_those_of_the_package(name):
    values, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (BLOCK_FORMATS[name].values, BLOCK_FORMATS[name].num_bytes) == (values, num_bytes)
