"""From a plan to a loaded model whose weights are where the plan has them."""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from soundstage.checkpoints import keymap
from soundstage.pipelines.adaptation import BLOCKS
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
from soundstage.runtime.offload import StreamingPlan, stream
from soundstage.runtime.planning import DevicePlan
from soundstage.runtime.residency import Residency, send_home

LISTS = {TRANSFORMER: BLOCKS[keymap.TRANSFORMER], TEXT: BLOCKS[keymap.TEXT_TOWER]}
MAPPED = {TRANSFORMER: keymap.TRANSFORMER, TEXT: keymap.TEXT_TOWER}


@dataclass
class Placed:
    """Where the weights of a model are; without a plan, everything is on the device."""

    placing: Placing = field(default_factory=Placing)
    plan: DevicePlan | None = None
    setup: Setup | None = None  # what the plan was made of
    residency: Residency | None = None
    _managed: list[nn.Module] = field(default_factory=list)  # those that take turns

    @property
    def is_resident(self) -> bool:
        """Whether everything is on the device for good."""
        return self.plan is None or self.plan.kind == "resident"

    @property
    def blends(self) -> bool:
        """Whether frames are decoded in tiles that are blended, for want of memory."""
        return self.plan is not None and not all(planned.is_exact for planned in self.plan.phases)

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
        if self.plan is None:
            return components
        keep_texts = self.setup is None or self.setup.keep_texts
        components = replace(components, decode_budget=self.plan.room, keep_texts=keep_texts)
        if self.is_resident:
            return components
        if self.residency is None and device.type != "cpu":  # there, home and device are the same memory
            self.residency = Residency(device, self.plan.visitors, self.plan.spare)
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
                self._managed.append(network)
        return replace(components, device=device, residency=self.residency)

    def follow(self, plan: DevicePlan, components: Components) -> Components:
        """Have networks take turns as a new plan for the same blocks has it."""
        if self.residency is not None:
            if plan.visitors < self.residency.budget or plan.spare < self.residency.spare:
                for network in self._managed:
                    send_home(network)
            self.residency.budget, self.residency.spare = plan.visitors, plan.spare
        self.plan = plan
        return replace(components, decode_budget=plan.room)


EVERYWHERE = Placed()
