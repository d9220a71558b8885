"""Devices by name."""

import pytest
import torch

from soundstage.core.errors import RequestError
from soundstage.runtime.device import find_device


def test_a_device_is_found_by_name():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(("available", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_takes_a_gpu_if_there_is_one(available, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert find_device("auto").type == expected


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cpu:x", ""])
def test_a_device_that_is_not_here_is_told_with_those_that_are(name):
    with pytest.raises(RequestError, match="is not here; there is cpu"):
        find_device(name)
