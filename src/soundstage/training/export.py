"""Write what a task trained in the official layout, so that every other part can read it."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MODEL_VERSION = "2.3"  # the generation whose transformer flags the embedded model uses


def write_component(path: Path, sections: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write header sections and tensors; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gemma = sections.pop("gemma_config", None)
    metadata = {"config": json.dumps(sections), "model_version": MODEL_VERSION}
    if gemma is not None:
        metadata["gemma_config"] = json.dumps(gemma)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial, metadata)
    partial.replace(path)


def read_component(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_component` wrote."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        sections: dict[str, Any] = json.loads(metadata["config"])
        if "gemma_config" in metadata:
            sections["gemma_config"] = json.loads(metadata["gemma_config"])
        return sections, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
