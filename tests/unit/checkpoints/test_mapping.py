"""Tensors that stay in their file: read-only, one mapping for all, and no promise of memory."""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

from soundstage.checkpoints.checkpoint import StoredTensor
from soundstage.checkpoints.header import read_header
from soundstage.checkpoints.reading import Placement, TensorReader, is_borrowed
from soundstage.checkpoints.save import lay_out, write_safetensors
from soundstage.core.errors import CheckpointError

GIGABYTE = 2**30
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def stored(path):
    return {name: StoredTensor(path, name, entry) for name, entry in read_header(path).tensors.items()}


def mapped(path, *names):
    reader = TensorReader(Placement())
    tensors = stored(path)
    try:
        return [reader.mapping(tensors[name]) for name in names or tensors]
    finally:
        reader.close()


@pytest.fixture
def file(tmp_path):
    tensors = {f"layer {i}": torch.randn(4, 3 + i) for i in range(5)}
    tensors |= {
        "half": torch.randn(7).bfloat16(),
        "codes": torch.randn(6).to(torch.float8_e4m3fn),
        "is it": torch.tensor([True, False]),
    }
    path = tmp_path / "m.safetensors"
    write_safetensors(path, tensors, {})
    return path, tensors


def mappings_of(path):
    """List how a file is mapped, such as `r--s`."""
    return [line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]


def test_mapped_tensors_are_those_of_the_file(file):
    path, tensors = file
    for got, expected in zip(mapped(path, *tensors), tensors.values(), strict=True):
        if got is None:  # it begins where its numbers may not
            assert expected.dtype.itemsize > 1
            continue
        assert got.dtype == expected.dtype
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))
        assert is_borrowed(got)
        assert not is_borrowed(got.clone())


@linux
def test_one_shared_mapping_that_cannot_be_written_serves_all_tensors_of_a_file(file):
    path, tensors = file
    views = mapped(path, *tensors)
    assert mappings_of(path) == ["r--s"]
    del views
    gc.collect()
    assert mappings_of(path) == []


@linux
def test_a_file_larger_than_all_memory_is_mapped(tmp_path):
    sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    memory = 1024 * sum(int(sizes[name].split()[0]) for name in ("MemTotal", "SwapTotal"))
    path, small = tmp_path / "m.safetensors", torch.arange(8.0)
    huge = torch.empty(memory + GIGABYTE, dtype=torch.uint8, device="meta")
    header, offsets = lay_out({"huge": huge, "small": small}, {})
    with path.open("wb") as out:
        out.write(header)
        out.seek(offsets["small"])
        out.write(small.numpy().data)
    os.truncate(path, max(offsets["huge"] + huge.numel(), path.stat().st_size))
    views = mapped(path, "huge", "small")
    assert path.stat().st_blocks * 512 < GIGABYTE  # it takes no disk either
    assert views[0].nbytes == huge.numel()
    assert torch.equal(views[1], small)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_tensors_that_begin_at_an_odd_byte_are_read(tmp_path, dtype):
    path, values = tmp_path / "m.safetensors", torch.arange(6).to(dtype)
    header = b'{"x":{"dtype":"%s","shape":[6],"data_offsets":[0,%d]}}' % (
        {"bfloat16": b"BF16", "float32": b"F32", "uint8": b"U8"}[str(dtype).removeprefix("torch.")],
        values.nbytes,
    )
    header += b" " * (1 - len(header) % 2)  # an odd length
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(values.view(torch.uint8).tolist()))
    reader, tensor = TensorReader(Placement()), stored(path)["x"]
    assert tensor.entry.start % 2 == 1
    view = reader.mapping(tensor)
    assert (view is None) == (dtype.itemsize > 1)
    assert torch.equal(reader.read(tensor) if view is None else view, values)
    reader.close()


@pytest.mark.parametrize("left", [0, 200])
def test_a_file_that_shrinks_after_opening_is_told(file, left):
    path, _ = file
    tensors, reader = stored(path), TensorReader(Placement())
    os.truncate(path, left)
    with pytest.raises(CheckpointError, match=r"ends inside|cannot be mapped"):
        reader.mapping(tensors["layer 4"])
    reader.close()
