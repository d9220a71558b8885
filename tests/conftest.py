"""What every test may rely on: no network, one thread per process, skips that say why."""

import os
import socket
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["COLUMNS"] = "100"  # help is wrapped to the terminal's width
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: without a GPU its kernels run in Python

import hypothesis
import pytest

# The same examples on every run, and no time limits: the machine may be busy.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("house")

LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("weights") and "SOUNDSTAGE_WEIGHTS" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="needs official weights in $SOUNDSTAGE_WEIGHTS"))


def _has_gpu():
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches for the internet fails at once, also where there is one."""
    connect = socket.socket.connect

    def connect_locally(self, address):
        if self.family == socket.AF_UNIX or address[0] in LOCAL:
            return connect(self, address)
        raise AssertionError(f"a test tried to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="session", autouse=True)
def _no_caches_of_the_user(tmp_path_factory):
    """Encoded prompts of the tests stay among the tests."""
    os.environ["SOUNDSTAGE_PROMPT_CACHE"] = str(tmp_path_factory.mktemp("prompts"))
    os.environ["SOUNDSTAGE_CONVERTED"] = str(tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A whole model of a few hundred kilobytes with random weights, in the layout of the embedded one."""
    import tiny

    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    tiny.write_embedded(path)
    return path
