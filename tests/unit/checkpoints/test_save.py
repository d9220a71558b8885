"""Writing the official layout: round trips, equal bytes, and nothing half-written."""

import errno

import pytest
import torch
from safetensors import safe_open

import tiny
from soundstage.checkpoints import keymap, save
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.reading import read_tensors
from soundstage.checkpoints.save import save_checkpoint, write_safetensors
from soundstage.core.errors import CheckpointError, ResourceError


def small(path, tensors=None, **options):
    parts = {keymap.VOCODER: tensors or {"conv_pre.weight": torch.randn(3, 3)}}
    save_checkpoint(path, parts, config={"vocoder": {}}, model_version="2.3.0", **options)
    return path


def test_a_saved_model_reads_back_as_it_was(tmp_path):
    checkpoint = open_checkpoint(tiny.write_model(tmp_path / "m.safetensors", "2.3"))
    for part, module in tiny.modules("2.3").items():
        got = read_tensors(checkpoint.part(part))
        assert all(torch.equal(got[name], tensor) for name, tensor in module.state_dict().items())
    assert checkpoint.config == tiny.config("2.3")
    assert checkpoint.metadata["model_version"] == "2.3.0"


def test_the_safetensors_library_reads_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = {
        "b": torch.randn(3).bfloat16(),
        "a": torch.randn(2, 2),
        "c": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "d": torch.tensor(4, dtype=torch.int64),
    }
    write_safetensors(path, tensors, {"note": "ä", "table": {"x": [1, 2]}})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"note": "ä", "table": '{"x": [1, 2]}'}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_equal_contents_give_equal_bytes(tmp_path):
    tensors = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.uint8)}
    write_safetensors(tmp_path / "one", tensors, {"x": "1", "y": {"k": 1, "j": 2}})
    write_safetensors(tmp_path / "two", dict(reversed(tensors.items())), {"y": {"j": 2, "k": 1}, "x": "1"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_number_format_is_chosen_per_call(tmp_path, dtype):
    values = torch.randn(4, 4)
    path = small(tmp_path / "m.safetensors", {"conv_pre.weight": values, "n": torch.tensor([1])}, dtype=dtype)
    got = read_tensors(open_checkpoint(path).part(keymap.VOCODER))
    assert torch.equal(got["conv_pre.weight"], values.to(dtype))
    assert got["n"].dtype == torch.int64


def test_the_number_format_can_differ_by_part(tmp_path):
    path = small(tmp_path / "m.safetensors", dtype={keymap.TRANSFORMER: torch.float16})
    assert read_tensors(open_checkpoint(path).part(keymap.VOCODER))["conv_pre.weight"].dtype == torch.float32


def test_values_too_large_for_float16_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(
        CheckpointError, match=r"vocoder.conv_pre.weight has values too large for torch.float16"
    ):
        small(path, {"conv_pre.weight": torch.tensor([1e6])}, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_views_and_strided_tensors_are_written_whole(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    path = small(tmp_path / "m.safetensors", {"a": base.T, "b": base[1], "c": torch.ones(1).expand(3)})
    got = read_tensors(open_checkpoint(path).part(keymap.VOCODER))
    assert torch.equal(got["a"], base.T)
    assert torch.equal(got["b"], base[1])
    assert torch.equal(got["c"], torch.ones(3))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = small(tmp_path / "m.safetensors")
    before = path.read_bytes()

    class FullDisk(save._replacing):
        def __enter__(self):
            super().__enter__()
            raise_full = OSError(errno.ENOSPC, "No space left on device")

            class File:
                def write(self, _):
                    raise raise_full

            return File()

    monkeypatch.setattr(save, "_replacing", FullDisk)
    with pytest.raises(ResourceError, match=r"no space left for .*m\.safetensors"):
        small(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written: No such file or directory"):
        small(tmp_path / "nowhere" / "m.safetensors")


def test_an_interruption_leaves_nothing(tmp_path):
    class Interrupting(dict):
        def __getitem__(self, name):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), save._replacing(tmp_path / "m.safetensors"):
        Interrupting()["a"]
    assert list(tmp_path.iterdir()) == []
