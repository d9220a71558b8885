"""Reading headers: what is told of a good file, and how a bad one is named."""

import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from soundstage.checkpoints.header import read_header
from soundstage.core.errors import CheckpointError


def write(path, tensors=None, metadata=None):
    save_file(tensors or {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path, metadata)
    return path


def raw(path, header, *, data=b"", length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + data)
    return path


def test_tells_names_shapes_types_and_places(tmp_path):
    header = read_header(write(tmp_path / "m.safetensors"))
    assert header.tensors["a"].shape == (2, 3)
    assert header.tensors["a"].dtype == "F32"
    assert header.tensors["b"].dtype == "BF16"
    assert header.tensors["b"].num_bytes == 8
    assert header.num_parameters == 10
    assert header.dtypes() == {"F32": 6, "BF16": 4}
    assert header.file_bytes == header.expected_bytes


def test_metadata_is_decoded_where_it_is_json(tmp_path):
    metadata = {"config": '{"vae": {"patch_size": 4}}', "model_version": "2.3.0", "license": "see LICENSE"}
    header = read_header(write(tmp_path / "m.safetensors", metadata=metadata))
    assert header.config == {"vae": {"patch_size": 4}}
    assert header.metadata["model_version"] == "2.3.0"
    assert header.metadata["license"] == "see LICENSE"


def test_a_version_that_looks_like_a_number_stays_text(tmp_path):
    header = read_header(write(tmp_path / "m.safetensors", metadata={"model_version": "2.10"}))
    assert header.metadata["model_version"] == "2.10"


def test_a_file_without_configuration_has_an_empty_one(tmp_path):
    assert read_header(write(tmp_path / "m.safetensors")).config == {}
    assert read_header(write(tmp_path / "n.safetensors", metadata={"config": "none"})).config == {}


def test_a_header_whose_length_begins_like_a_pickle_is_still_a_header(tmp_path):
    text = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    path = raw(tmp_path / "m.safetensors", text + b" " * (0x0280 - len(text)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_header(path).tensors["a"].shape == (0,)


def test_a_truncated_file_is_told_with_the_bytes_that_are_missing(tmp_path):
    path = write(tmp_path / "m.safetensors")
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        CheckpointError, match=f"truncated: {whole - 5:,} bytes are present.*{whole:,} .5 missing"
    ):
        read_header(path)
    assert read_header(path, require_data=False).file_bytes == whole - 5


def test_a_file_cut_within_its_header_is_truncated_too(tmp_path):
    path = write(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"truncated.*its header alone needs"):
        read_header(path, require_data=False)


def test_a_file_that_is_too_long_is_damaged(tmp_path):
    path = write(tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes() + b"xx")
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(path)


def pickled(path):
    path.write_bytes(pickle.dumps({"a": [1, 2]}, protocol=2))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")


@pytest.mark.parametrize(
    ("write_bad", "reason"),
    [
        (pickled, "is a PyTorch pickle .*; soundstage reads safetensors only"),
        (zipped, "pickle or another zip archive"),
        (lambda p: torch.save({"a": torch.ones(1)}, p), "pickle or another zip archive"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"GGUF" + bytes(60)), "is a GGUF file"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x"), "git-lfs pointer"),
        (lambda p: p.write_bytes(b"<!DOCTYPE html><html>sign in</html>"), "web page"),
        (lambda p: p.write_bytes(bytes(1000)), "is not a safetensors file"),
        (lambda p: p.write_bytes(b"hello"), "is not a safetensors file"),
        (lambda p: raw(p, b'{"a": '), "damaged header"),
        (lambda p: raw(p, {"a": {"dtype": "F32", "shape": [2]}}), "damaged header entry for 'a'"),
        (
            lambda p: raw(p, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, data=bytes(4)),
            "damaged",
        ),
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "is a directory"),
    ],
)
def test_what_is_not_a_checkpoint_is_named_as_what_it_is(tmp_path, write_bad, reason):
    path = tmp_path / "renamed.safetensors"
    write_bad(path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_number_format_can_be_inspected(tmp_path):
    entry = {"dtype": "F4", "shape": [4, 2], "data_offsets": [0, 4]}
    header = read_header(raw(tmp_path / "m.safetensors", {"a": entry}, data=bytes(4)))
    assert header.tensors["a"].dtype == "F4"
    assert header.tensors["a"].num_bytes == 4
