"""What the replay of recorded cases stands on: a case's data, and a directory's networks, loaded once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundstage.checkpoints.checkpoint import Checkpoint, open_checkpoint
from soundstage.core.errors import RequestError
from soundstage.models.upsampler.model import LatentUpsampler
from soundstage.pipelines.loading import Component, Components, load_checkpoint, load_upsampler


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recorded call."""

    spec: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]  # what the reference gave

    @property
    def id(self) -> str:
        """Name of the case."""
        return str(self.spec["id"])

    @property
    def params(self) -> Mapping[str, Any]:
        """Plain values of the call."""
        params: Mapping[str, Any] = self.spec.get("params") or {}
        return params

    def check_param(self, name: str, allowed: Any) -> None:
        """Refuse a case that asks for what this implementation does not do.

        Raises:
            RequestError: The parameter is there and has another value.
        """
        value = self.params.get(name, allowed)
        if value != allowed:
            raise RequestError(f"{name}={value!r} is not supported; {allowed!r} is")


@dataclass(kw_only=True)
class Bench:
    """A directory of cases on one device, with the networks that its cases have used so far."""

    directory: Path
    manifest: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    _components: dict[tuple[str, Component], Components] = field(default_factory=dict)
    _upsamplers: dict[str, LatentUpsampler] = field(default_factory=dict)

    def components(self, case: Case, component: Component) -> Components:
        """Load one component of the case's checkpoint, as a pipeline would."""
        return self.components_of(self._name(case), component)

    def components_of(self, name: str, component: Component) -> Components:
        """Load one component of a checkpoint of the manifest."""
        key = (name, component)
        if key not in self._components:
            if name not in self._checkpoints:
                self._checkpoints[name] = open_checkpoint(self.directory / self.checkpoint_file(name))
            self._components[key] = load_checkpoint(
                self._checkpoints[name],
                device=self.device,
                dtype=self.dtype,
                components=(component,),
                text_size=self._entry(name).get("text_encoder"),
            )
        return self._components[key]

    def upsampler(self, case: Case) -> LatentUpsampler:
        """Load the case's latent upsampler."""
        name = self._name(case)
        if name not in self._upsamplers:
            path = self.directory / self.checkpoint_file(name)
            self._upsamplers[name] = load_upsampler(path, device=self.device, dtype=self.dtype)
        return self._upsamplers[name]

    def checkpoint_file(self, name: str) -> str:
        """Path of a checkpoint inside the directory."""
        return str(self._entry(name)["file"])

    def statistics_of(self, spec: Mapping[str, Any]) -> str | None:
        """Name of the second checkpoint that a case uses: an upsampler borrows the statistics of a VAE."""
        name = (spec.get("params") or {}).get("stats_checkpoint")
        return None if name is None else str(name)

    def inputs(self, case: Case) -> dict[str, Tensor]:
        """Move a case's inputs to the device, in the number format they were recorded in."""
        return {name: tensor.to(self.device) for name, tensor in case.inputs.items()}

    def _name(self, case: Case) -> str:
        name = case.spec.get("checkpoint")
        if not name:
            raise RequestError("the case names no checkpoint")
        return str(name)

    def _entry(self, name: str) -> Mapping[str, Any]:
        checkpoints: Mapping[str, Any] = self.manifest.get("checkpoints", {})
        if name not in checkpoints:
            raise RequestError(f"the manifest has no checkpoint {name!r}")
        entry: Mapping[str, Any] = checkpoints[name]
        return entry


def given(module: nn.Module | None, name: str) -> Any:
    """Return a network that was asked for; mypy cannot know that it is there."""
    if module is None:
        raise RequestError(f"the checkpoint has no {name}")
    return module
