"""Resume: one safetensors file with every tensor of a run, one JSON file with the rest. No pickle.

Both are written beside the old ones and renamed, the JSON last: a run stopped at any moment resumes from a
whole state.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from soundstage.core.errors import ConfigError

STATE = "state.json"


def save_state(directory: Path, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Write a state; the previous one stays valid until this one is complete."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"state-{plain['step']:08d}.safetensors"
    unique = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(unique, directory / f".{name}.partial")
    (directory / f".{name}.partial").replace(directory / name)
    (directory / f".{STATE}.partial").write_text(json.dumps({**plain, "tensors": name}))
    (directory / f".{STATE}.partial").replace(directory / STATE)
    for old in directory.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_state(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the state that `save_state` wrote; None if there is none.

    Raises:
        ConfigError: The state is damaged.
    """
    if not (directory / STATE).exists():
        return None
    try:
        plain = json.loads((directory / STATE).read_text())
        return load_file(directory / plain["tensors"]), plain
    except (ValueError, KeyError, OSError, SafetensorError) as error:
        raise ConfigError(f"{directory} does not hold a whole training state: {error}") from error


def pack_optimizer(prefix: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """Flatten an optimiser's state into named tensors."""
    packed = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            packed[f"{prefix}.{index}.{key}"] = tensor
    return packed


def unpack_optimizer(prefix: str, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what `pack_optimizer` flattened; the learning rates are set anew at every step."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def mark_of(tensors: Iterable[Tensor], about: str = "") -> Tensor:
    """Digest what a state depends on, so that a resumed run can tell whether it is still the same."""
    digest = hashlib.sha256(about.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
