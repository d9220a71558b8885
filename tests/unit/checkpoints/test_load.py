"""Filling networks: exactly what the file says, strictly, and without surprises in type or place."""

import pytest
import torch
from torch import nn

import tiny
from soundstage.checkpoints.checkpoint import open_checkpoint
from soundstage.checkpoints.load import NAMES_SHOWN, TensorMismatchError, load_module
from soundstage.checkpoints.reading import STAGING_BYTES, Placement, TensorReader, read_tensors
from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import CheckpointError


class Net(nn.Module):
    def __init__(self, width=3, layers=1):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.register_buffer("mean-of-means", torch.full((width,), torch.nan))


def state(width=3, layers=1):
    names = [
        (f"linears.{i}.{n}", s)
        for i in range(layers)
        for n, s in (("weight", (width,) * 2), ("bias", (width,)))
    ]
    tensors = {name: torch.arange(torch.Size(shape).numel()).float().view(shape) / 7 for name, shape in names}
    return tensors | {"mean-of-means": torch.ones(width)}


def stored(tmp_path, tensors):
    """Write tensors as a vocoder's and open them."""
    path = tmp_path / "net.safetensors"
    write_safetensors(path, {f"vocoder.{name}": tensor for name, tensor in tensors.items()}, {})
    return open_checkpoint(path).part("vocoder")


def load(tmp_path, tensors, *, build=Net, **options):
    place = Placement(dtype=options.pop("dtype", None))
    return load_module(build, stored(tmp_path, tensors), what="the net", placement=place, **options)


def test_the_network_gets_the_files_values_bit_for_bit(tmp_path):
    tensors = state()
    module = load(tmp_path, tensors)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(tensor.is_meta for tensor in module.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_cast_one_by_one(tmp_path, dtype):
    tensors = state()
    module = load(tmp_path, tensors, dtype=dtype)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, tensors[name].to(dtype))


def test_a_tensor_larger_than_the_buffer_is_cast_in_slices(tmp_path):
    values = torch.randn(STAGING_BYTES // 4 * 2 + 5, generator=torch.Generator().manual_seed(0))
    got = read_tensors(stored(tmp_path, {"x": values}), Placement(dtype=torch.bfloat16))
    assert torch.equal(got["x"], values.bfloat16())


def test_types_other_than_floats_are_kept(tmp_path):
    tensors = {
        "u8": torch.tensor([1, 2, 250], dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "nothing": torch.zeros(0, 3),
    }
    got = read_tensors(stored(tmp_path, tensors), Placement(dtype=torch.bfloat16))
    assert torch.equal(got["u8"], tensors["u8"])
    assert torch.equal(got["flag"], tensors["flag"])
    assert got["count"].item() == 7
    assert got["nothing"].shape == (0, 3)


def test_fp8_weights_are_multiplied_by_their_scale(tmp_path):
    weight = torch.tensor([[1.0, -2.0, 3.0]] * 3)
    tensors = state() | {
        "linears.0.weight": weight.to(torch.float8_e4m3fn),
        "linears.0.weight_scale": torch.tensor(0.5),
        "linears.0.input_scale": torch.tensor(9.0),
    }
    module = load(tmp_path, tensors, dtype=torch.float32)
    assert torch.equal(module.linears[0].weight, weight * 0.5)
    assert load(tmp_path, tensors).linears[0].weight.dtype == torch.bfloat16


def test_nvfp4_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="NVFP4"):
        load(tmp_path, state() | {"linears.0.weight_scale_2": torch.tensor(1.0)})


def test_all_differences_are_listed_at_once(tmp_path):
    tensors = state()
    del tensors["linears.0.bias"]
    tensors["linears.0.weight"] = torch.zeros(3, 4)
    tensors["alien"] = torch.zeros(1)
    with pytest.raises(TensorMismatchError) as caught:
        load(tmp_path, tensors)
    error = caught.value
    assert error.missing == ("linears.0.bias",)
    assert error.unexpected == ("alien",)
    assert error.misshapen == {"linears.0.weight": ((3, 4), (3, 3))}
    assert "the net does not fit" in str(error)
    assert "linears.0.weight [3, 4] instead of [3, 3]" in str(error)


def test_a_long_list_is_shortened_in_the_message_only(tmp_path):
    layers = NAMES_SHOWN
    with pytest.raises(TensorMismatchError) as caught:
        load(tmp_path, {"mean-of-means": torch.ones(3)}, build=lambda: Net(layers=layers))
    assert len(caught.value.missing) == 2 * layers
    assert f"{2 * layers} missing" in str(caught.value)
    assert f"and {layers} more" in str(caught.value)


def test_gaps_are_allowed_by_name_only(tmp_path):
    tensors = state() | {"channel": torch.ones(3)}
    assert load(tmp_path, tensors, unused={"channel"})
    with pytest.raises(TensorMismatchError, match="channel"):
        load(tmp_path, tensors)
    del tensors["mean-of-means"]
    with pytest.raises(TensorMismatchError, match="mean-of-means"):
        load(tmp_path, tensors, unused={"channel"})


def test_progress_counts_tensors_and_bytes(tmp_path):
    events = []
    load(tmp_path, state(), on_progress=events.append)
    assert [event.step for event in events] == [1, 2, 3]
    assert {event.num_steps for event in events} == {3}
    assert events[-1].bytes == 4 * (9 + 3 + 3)
    assert {event.stage for event in events} == {"load"}


class Halves:
    """Lays out every weight as one of two processes has it."""

    def __init__(self, rank):
        self.rank = rank

    def lay_out(self, module):
        for tensor in (*module.parameters(), *module.buffers()):
            assert tensor.is_meta  # nothing was read before
        for owner in module.modules():
            for kind in (owner._parameters, owner._buffers):
                for name, tensor in kind.items():
                    rows = self.rows(len(tensor))
                    own = torch.full(
                        (rows.stop - rows.start, *tensor.shape[1:]), torch.nan, dtype=tensor.dtype
                    )
                    own.whole = len(tensor)
                    kind[name] = own

    def rows(self, count):
        each = -(-count // 2)
        return slice(each * self.rank, min(each * (self.rank + 1), count))

    def own(self, weight):
        return weight, self.rows(weight.whole)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_of_weights_that_are_shared_only_the_own_rows_are_read(tmp_path, monkeypatch, dtype):
    tensors = state(width=5, layers=2) | {"linears.1.weight": torch.randn(5, 5).to(torch.float8_e4m3fn)}
    tensors["linears.1.weight_scale"] = torch.tensor(3.0)
    read, plain = [], TensorReader._read_into

    def counting(self, stored, target, offset):
        read.append(target.numel() * target.element_size())
        plain(self, stored, target, offset)

    monkeypatch.setattr(TensorReader, "_read_into", counting)
    halves = [
        load(tmp_path, tensors, build=lambda: Net(5, 2), dtype=dtype, shares=Halves(rank))
        for rank in range(2)
    ]
    halves_read = list(read)
    whole = load(tmp_path, tensors, build=lambda: Net(5, 2), dtype=dtype).state_dict()
    for name, expected in whole.items():
        path, _, leaf = name.rpartition(".")
        parts = [getattr(half.get_submodule(path), leaf) for half in halves]
        assert [len(part) for part in parts] == [3, 2]
        assert torch.equal(torch.cat(parts), expected)
        assert parts[0].dtype == expected.dtype
    once = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert sum(halves_read) == once + 4  # the scale by both


def test_a_file_that_shrinks_after_opening_is_told(tmp_path):
    part = stored(tmp_path, state())
    path = tmp_path / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="ends inside"):
        load_module(Net, part, what="the net", placement=Placement())


def test_loading_leaves_no_file_open(tmp_path):
    part = stored(tmp_path, state())
    load_module(Net, part, what="the net", placement=Placement())
    (tmp_path / "net.safetensors").unlink()


@pytest.mark.parametrize("generation", ["2.0", "2.3", "2.5"])
def test_every_part_of_every_generation_loads(generation, tmp_path):
    checkpoint = open_checkpoint(tiny.write_model(tmp_path / "m.safetensors", generation))
    for part, module in tiny.modules(generation).items():
        loaded = load_module(
            lambda module=module: type(module)(module.config),
            checkpoint.part(part),
            what=part,
            placement=Placement(),
        )
        expected = module.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
