"""A run can begin with given weights, and refuses those that do not fit."""

import pytest
import torch

from soundstage.core.errors import CheckpointError
from soundstage.training.export import warm_start, write_component


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "given.safetensors"
    tensors = {
        "vae.a": torch.arange(6.0).view(2, 3),
        "vae.more": torch.ones(1),
        "words": torch.tensor([1, 2]),
    }
    write_component(path, {"vae": {}}, tensors)
    return path


def test_weights_are_filled_in_place(given):
    weight = torch.zeros(2, 3)
    warm_start({"vae.a": weight, "words": torch.tensor([1, 2])}, given)
    assert torch.equal(weight, torch.arange(6.0).view(2, 3))


def test_another_shape_is_refused_by_name(given):
    with pytest.raises(CheckpointError, match=r"vae\.a is \(2, 3\) there, \(3, 3\) here"):
        warm_start({"vae.a": torch.zeros(3, 3)}, given)


def test_a_missing_tensor_is_refused_by_name(given):
    with pytest.raises(CheckpointError, match=r"vae\.b is nothing there"):
        warm_start({"vae.b": torch.zeros(1)}, given)


def test_layers_that_at_first_add_nothing_may_be_new(given):
    head, weight = torch.full((2,), 7.0), torch.zeros(2, 3)
    warm_start({"net.detail_head.write.weight": head, "vae.a": weight}, given)
    assert torch.equal(head, torch.full((2,), 7.0))
    assert weight.any()


def test_another_tokenizer_is_refused(given):
    with pytest.raises(CheckpointError, match="words differs"):
        warm_start({"words": torch.tensor([1, 3])}, given)
