"""Read the recorded reference cases in tests/golden."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One recorded call: its parameters, inputs and expected outputs."""

    spec: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def params(self) -> dict[str, Any]:
        return self.spec["params"]

    def check(self, name: str, got: Tensor) -> None:
        """Assert that `got` is the expected output `name` within the manifest's tolerance."""
        tolerance = self.spec["tolerance"].get("per_output", {}).get(name, self.spec["tolerance"])
        expected = self.outputs[name].float()
        assert got.shape == expected.shape, (
            f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        )
        torch.testing.assert_close(
            got.float(),
            expected,
            atol=tolerance["atol"],
            rtol=tolerance["rtol"],
            msg=lambda m: f"{name}: {m}",
        )


@functools.cache
def manifest() -> dict[str, Any]:
    return json.loads((GOLDEN / "manifest.json").read_text())


def cases(component: str, generation: str | None = None) -> list[str]:
    """List the ids of a component's cases, optionally of one generation such as "2.0"."""
    ids = [case["id"] for case in manifest()["cases"] if case["component"] == component]
    return [i for i in ids if generation is None or f".{generation}." in i]


def load_case(case_id: str) -> Case:
    spec = next(case for case in manifest()["cases"] if case["id"] == case_id)
    path = spec["file"] if "/" in spec["file"] else f"cases/{spec['file']}"
    with safe_open(GOLDEN / path, "pt") as file:
        inputs = {name: file.get_tensor(entry["tensor"]) for name, entry in spec["inputs"].items()}
        outputs = {name: file.get_tensor(entry["tensor"]) for name, entry in spec["outputs"].items()}
    return Case(spec, inputs, outputs)


def load_checkpoint(name: str, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a golden checkpoint: its header `config` and, with `prefix` stripped, the tensors below it."""
    with safe_open(GOLDEN / manifest()["checkpoints"][name]["file"], "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {k[len(prefix) :]: file.get_tensor(k).float() for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
    return config, tensors
