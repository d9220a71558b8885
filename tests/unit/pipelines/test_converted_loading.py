"""Weights that stay on disk in another format than their file's: the same bits, converted once."""

import os
import time
from dataclasses import replace

import pytest
import torch

import tiny
from soundstage.checkpoints import converted, keymap, reading
from soundstage.checkpoints.checkpoint import StoredTensor, open_checkpoint
from soundstage.checkpoints.header import read_header
from soundstage.checkpoints.load import load_module
from soundstage.checkpoints.reading import Placement
from soundstage.checkpoints.save import write_safetensors
from soundstage.core.errors import CheckpointError, RequestError, ResourceError
from soundstage.pipelines import forecast, kept_weights
from soundstage.pipelines.loading import load_checkpoint
from soundstage.pipelines.placing import Placing
from soundstage.runtime.quantization.int8 import Int8Linear
from soundstage.runtime.quantization.layer import QuantizedLinear
from soundstage.runtime.rates import known_gpu
from unit.pipelines.test_quantized_loading import fp8_file, gguf_file

MEGABYTE = 10**6
CASES = {
    "int8": (Placing(quantize="int8"), torch.float32),
    "int4": (Placing(quantize="int4"), torch.float32),
    "fp8": (Placing(quantize="fp8", quantize_skip=("*.ff",)), torch.bfloat16),
    "plain bfloat16": (Placing(), torch.bfloat16),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Convert small tensors, too, to a folder of each test's own."""
    monkeypatch.setattr(reading, "SMALL_BYTES", 0)
    monkeypatch.setenv(converted.FOLDER_VARIABLE, str(tmp_path / "converted"))
    return tmp_path / "converted"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("model") / "m.safetensors", "2.3")


def loaded(file, placing, dtype=torch.float32, *, on_disk=True, **options):
    return load_checkpoint(
        open_checkpoint(file),
        dtype=dtype,
        components=("transformer",),
        placing=placing,
        mapped=(keymap.TRANSFORMER,) if on_disk else (),
        **options,
    ).transformer


def assert_same_bits(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        bits = (state[name].contiguous().view(torch.uint8) for state in (first, second))
        assert torch.equal(*bits), name


@pytest.mark.parametrize("case", CASES)
def test_converted_weights_are_those_that_memory_would_hold(file, folder, case):
    placing, dtype = CASES[case]
    wanted = loaded(file, placing, dtype, on_disk=False)
    for _ in range(2):
        assert_same_bits(loaded(file, placing, dtype), wanted)
    (kept,) = folder.iterdir()
    assert kept.suffix == ".safetensors"


@pytest.mark.parametrize("kind", ["fp8", "gguf"])
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_codes_of_a_file_can_be_widened_or_coded_otherwise(tmp_path, kind, quantize):
    if kind == "fp8":
        path = fp8_file(tmp_path / "m.safetensors", input_scale=True)
    else:
        path = gguf_file(tmp_path / "m.gguf", "Q8_0")
    placing = Placing(quantize=quantize)
    assert_same_bits(
        loaded(path, placing, torch.bfloat16), loaded(path, placing, torch.bfloat16, on_disk=False)
    )


def test_codes_that_are_used_as_they_are_are_mapped_from_their_own_file(tmp_path, folder):
    path = fp8_file(tmp_path / "m.safetensors", input_scale=True)
    model = loaded(path, Placing(quantize="fp8"), torch.float32)
    sizes = {
        layer.codes.untyped_storage().nbytes()
        for layer in model.modules()
        if isinstance(layer, QuantizedLinear)
    }
    (kept,) = folder.iterdir()
    assert sizes == {path.stat().st_size, kept.stat().st_size}  # the first block, and the second


def test_weights_are_converted_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    file, taken = tiny.write_model(tmp_path / "m.safetensors", "2.3"), []
    take_rows = Int8Linear.take_rows
    monkeypatch.setattr(Int8Linear, "take_rows", lambda *args: taken.append(1) or take_rows(*args))
    counts = []
    for change in (lambda: None, lambda: None, lambda: os.utime(file, (1, 1))):
        change()
        taken.clear()
        loaded(file, Placing(quantize="int8"))
        counts.append(len(taken))
    assert counts == [2 * 28, 0, 2 * 28]


def test_every_step_of_loading_is_told_both_times(file):
    for _ in range(2):
        events = []
        loaded(file, Placing(quantize="int8"), on_progress=events.append)
        assert [event.step for event in events] == list(range(1, events[0].num_steps + 1))


def test_a_damaged_file_is_made_anew(file, folder):
    wanted = loaded(file, Placing(quantize="int8"))
    state = {name: value.clone() for name, value in wanted.state_dict().items()}
    (kept,) = folder.iterdir()
    os.truncate(kept, kept.stat().st_size - 10)
    again = loaded(file, Placing(quantize="int8")).state_dict()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_file_that_ends_early_leaves_nothing_behind(tmp_path, folder):
    file = tiny.write_model(tmp_path / "m.safetensors", "2.3")
    checkpoint = open_checkpoint(file)
    os.truncate(file, file.stat().st_size // 4)
    with pytest.raises(CheckpointError, match="ends inside"):
        load_checkpoint(
            checkpoint,
            components=("transformer",),
            placing=Placing(quantize="int8"),
            mapped=(keymap.TRANSFORMER,),
        )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("case", CASES)
def test_what_is_converted_is_foretold(file, folder, case):
    placing, dtype = CASES[case]
    checkpoint = open_checkpoint(file)
    setup = forecast.Setup(
        checkpoint=checkpoint, tower={}, placing=placing, rates=known_gpu("H100"), dtype=dtype
    )
    form, tensors = setup.format(keymap.TRANSFORMER), checkpoint.part(keymap.TRANSFORMER)
    loaded(file, placing, dtype)
    (kept,) = folder.iterdir()
    entries = read_header(kept).tensors
    foretold = {
        name
        for name, tensor in tensors.items()
        if kept_weights._is_converted(form, name, tensor, setup.dtype)
    }
    assert {layer(name) for name in foretold} == {layer(name) for name in entries}
    if placing.quantize is None:  # scales weigh more in tiny layers than at real widths
        stored = sum(entry.num_bytes for entry in entries.values())
        assert setup.converted_bytes(keymap.TRANSFORMER) == stored


def layer(name):
    return name.rpartition(".")[0]


def test_too_little_room_is_found_out_before_any_work(file, folder, monkeypatch):
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ResourceError, match=r"take 0\.0 GB in .*SOUNDSTAGE_CONVERTED.*--offload stream"):
        loaded(file, Placing(quantize="int8"))
    assert list(folder.iterdir()) == []


def kept_in(folder, ages):
    """Put converted weights of a megabyte there that were last used so many days ago."""
    folder.mkdir()
    for name, days in ages.items():
        path = folder / f"{name}.safetensors"
        write_safetensors(path, {"x": torch.zeros(MEGABYTE, dtype=torch.uint8)}, {"made_of": "a test"})
        then = time.time() - days * 24 * 3600
        os.utime(path, (then, then))


def names_in(folder):
    return {path.stem for path in folder.iterdir() if path.stat().st_size >= MEGABYTE}


def test_weights_unused_for_a_month_go_when_others_are_converted(file, folder):
    kept_in(folder, {"old": 31, "newer": 29, "now": 0})
    loaded(file, Placing(quantize="int8"))
    assert names_in(folder) == {"newer", "now"}


def test_the_least_recently_used_make_room(file, folder, monkeypatch):
    kept_in(folder, {"third": 1, "first": 20, "second": 2, "now": 0})

    def usage(where):
        held = sum(path.stat().st_size for path in folder.iterdir())
        return type("Usage", (), {"free": 3 * MEGABYTE + 2000 - held})()  # too little until two are gone

    monkeypatch.setattr(converted.shutil, "disk_usage", usage)
    loaded(file, Placing(quantize="int8"))
    assert names_in(folder) == {"third", "now"}


@pytest.mark.parametrize(("short", "kept"), [(0, {"now"}), (10**7, {"old", "now"})])
def test_only_what_makes_enough_room_is_given_up_and_nothing_of_the_same_hour(
    file, folder, monkeypatch, short, kept
):
    kept_in(folder, {"old": 2, "now": 0})
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda _: type("Usage", (), {"free": -short})())
    with pytest.raises(ResourceError, match="take"):
        loaded(file, Placing(quantize="int8"))
    assert names_in(folder) == kept


def test_files_that_were_not_made_here_are_never_removed(file, folder, monkeypatch):
    kept_in(folder, {"old": 400})
    write_safetensors(folder / "own.safetensors", {"x": torch.zeros(MEGABYTE, dtype=torch.uint8)}, {})
    (folder / "other.safetensors").write_bytes(bytes(MEGABYTE))
    for name in ("own", "other"):
        os.utime(folder / f"{name}.safetensors", (1, 1))
    loaded(file, Placing(quantize="int8"))
    assert names_in(folder) == {"own", "other"}


def test_asking_for_weights_counts_as_use(file, folder):
    loaded(file, Placing(quantize="int8"))
    (kept,) = folder.iterdir()
    os.utime(kept, (1, 1))
    loaded(file, Placing(quantize="int8"))
    assert time.time() - kept.stat().st_mtime < 60


def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(file, folder):
    folder.write_text("in the way")
    with pytest.raises(RequestError, match=r"converted weights: .*SOUNDSTAGE_CONVERTED names another"):
        loaded(file, Placing(quantize="int8"))


def test_without_a_place_for_them_weights_are_not_converted(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"blocks.weight": torch.ones(4, 4)}, {})
    tensors = {name: StoredTensor(path, name, entry) for name, entry in read_header(path).tensors.items()}
    with pytest.raises(CheckpointError, match="is F32 and would have to be converted"):
        load_module(
            lambda: torch.nn.ModuleDict({"blocks": torch.nn.Linear(4, 4, bias=False)}),
            tensors,
            what="it",
            placement=Placement(dtype=torch.bfloat16, mapped="blocks"),
        )


def test_what_the_files_maker_added_is_taken_off_on_disk_too(tmp_path):
    path, values = tmp_path / "m.safetensors", torch.arange(8.0)
    write_safetensors(path, {"blocks.weight": values}, {})
    (entry,) = read_header(path).tensors.values()
    tensors = {"blocks.weight": StoredTensor(path, "blocks.weight", replace(entry, surplus=1.0))}
    module = load_module(
        lambda: torch.nn.ModuleDict({"blocks": torch.nn.RMSNorm(8)}),
        tensors,
        what="it",
        placement=Placement(
            dtype=torch.float32,
            mapped="blocks",
            converted=converted.ConvertedWeights(converted.converted_folder()),
        ),
    )
    assert torch.equal(module["blocks"].weight, values - 1)
