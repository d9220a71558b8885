"""Weights of which every process keeps a share: what is run is gathered, and let go after.

The units are the transformer's blocks, the layers that embed noise levels, and the little that is left. Each
is called once per forward whatever the passes are, so that all processes gather at the same moments.

Source: Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277.
"""

import torch
from torch import Tensor, nn

from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.modulation import AdaLNSingle
from soundstage.runtime.distributed import Team


class WeightShares:
    """What a process keeps of a transformer: of every weight some rows, as equal as can be."""

    def __init__(self, team: Team) -> None:
        self.team = team

    def lay_out(self, module: nn.Module) -> None:
        """Replace the weights of a network without memory by shares on the device, not filled yet."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        assert isinstance(module, AVTransformer)
        mesh = init_device_mesh(self.team.device.type, (self.team.world.size,))
        embedders = [layer for layer in module.children() if isinstance(layer, AdaLNSingle)]
        for unit in (*module.transformer_blocks, *embedders, module):
            fully_shard(unit, mesh=mesh)
        module.to_empty(device=self.team.device)

    def own(self, weight: Tensor) -> tuple[Tensor, slice]:
        """Return the memory of this process's share of a weight, and which rows of the whole it is."""
        from torch.distributed.tensor import DTensor

        assert isinstance(weight, DTensor)
        each = -(-len(weight) // self.team.world.size)
        first = min(each * self.team.world.rank, len(weight))
        with torch.no_grad():  # a plain view, which may be written to
            local = weight.to_local()
        assert len(local) == min(each, len(weight) - first)
        return local, slice(first, first + len(local))


def is_sharded(transformer: AVTransformer) -> bool:
    """Tell whether this process has a share of the weights only."""
    return any(hasattr(weight, "to_local") for weight in transformer.parameters())
