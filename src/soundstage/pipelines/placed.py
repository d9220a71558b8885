"""From a plan to a loaded model whose weights are where the plan has them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from soundstage.checkpoints import keymap
from soundstage.checkpoints.checkpoint import Checkpoint
from soundstage.pipelines.adaptation import BLOCKS
from soundstage.pipelines.fitting import Fitted, fit
from soundstage.pipelines.forecast import (
    AUDIO_VAE,
    CONNECTORS,
    TEXT,
    TRANSFORMER,
    VIDEO_VAE,
    VOCODER,
    Setup,
)
from soundstage.pipelines.loading import Components
from soundstage.pipelines.placing import Placing
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.sketch import text_tower
from soundstage.runtime.offload import StreamingPlan, stream
from soundstage.runtime.planning import DevicePlan
from soundstage.runtime.rates import CONTEXT_BYTES, rates_of
from soundstage.runtime.residency import Residency

USUAL = GenerationRequest(prompt="a clip of the model's own size")
LISTS = {TRANSFORMER: BLOCKS[keymap.TRANSFORMER], TEXT: BLOCKS[keymap.TEXT_TOWER]}
MAPPED = {TRANSFORMER: keymap.TRANSFORMER, TEXT: keymap.TEXT_TOWER}


@dataclass
class Placed:
    """Where the weights of a model are; without a plan, everything is on the device."""

    placing: Placing = field(default_factory=Placing)
    plan: DevicePlan | None = None
    keep_texts: bool = True
    residency: Residency | None = None

    @property
    def is_resident(self) -> bool:
        """Whether everything is on the device for good."""
        return self.plan is None or self.plan.kind == "resident"

    @property
    def mapped(self) -> tuple[str, ...]:
        """Parts whose blocks stay on disk."""
        if self.plan is None or not self.plan.on_disk:
            return ()
        return tuple(MAPPED[name] for name in self.plan.streamed)

    def loading_device(self, device: torch.device) -> torch.device:
        """Tell where weights are read to."""
        return device if self.is_resident else torch.device("cpu")

    def take(self, components: Components, device: torch.device) -> Components:
        """Have loaded networks come to the device as planned."""
        if self.is_resident or self.plan is None:
            return replace(components, keep_texts=self.keep_texts)
        if self.residency is None and device.type != "cpu":  # there, home and device are the same memory
            self.residency = Residency(device, self.plan.visitors)
        text = components.text
        networks: dict[str, nn.Module | None] = {
            TRANSFORMER: components.transformer,
            TEXT: None if text is None else text.gemma,
            CONNECTORS: components.connectors,
            VIDEO_VAE: components.video_vae,
            AUDIO_VAE: components.audio_vae,
            VOCODER: components.vocoder,
        }
        for name, network in networks.items():
            if network is None:
                continue
            if name in self.plan.streamed:
                count = self.plan.streamed[name]
                how = StreamingPlan(device=device, resident=count, on_disk=self.plan.on_disk)
                stream(network, LISTS[name], how)
            if self.residency is not None:
                self.residency.manage(name, network)
        return replace(components, device=device, residency=self.residency, keep_texts=self.keep_texts)


EVERYWHERE = Placed()


def place(
    checkpoint: Checkpoint,
    placing: Placing,
    *,
    device: torch.device,
    dtype: torch.dtype,
    text_encoder: Path | None,
    requests: Sequence[GenerationRequest] = (),
) -> Placed:
    """Choose where the weights of a model will be, from its headers and the clips that are to be made.

    Args:
        requests: The largest of them counts; a clip of the model's own size when there are none.

    Raises:
        ResourceError: They do not fit; says what would.
    """
    if device.type == "cpu" and placing.offload in ("auto", "none"):
        return Placed(placing)
    rates = rates_of(device)
    setup = Setup(
        checkpoint=checkpoint,
        tower=text_tower(checkpoint, text_encoder),
        placing=placing,
        rates=rates,
        dtype=dtype,
    )
    budget = placing.vram_bytes or _free(device, rates.memory)
    fitted: list[Fitted] = [fit(setup, request, budget) for request in requests or [USUAL]]
    largest = max(fitted, key=lambda one: one.largest)
    return Placed(placing, largest.device, largest.keep_texts)


def _free(device: torch.device, memory: int) -> int:
    """Return what may be used: what is free, and what the driver has taken for this process already."""
    if device.type != "cuda":
        return memory
    free, _ = torch.cuda.mem_get_info(device)
    return free + CONTEXT_BYTES
