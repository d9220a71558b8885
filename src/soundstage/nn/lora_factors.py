"""Low-rank additions to many layers as what is trained, while the layers themselves stand still.

The weights with additions are made once per step and lent to the network for one call. At a few thousand
tokens a step that costs a fraction of computing branches beside every layer, and the untouched network stays
at hand, such as for a teacher.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from soundstage.core.errors import ConfigError
from soundstage.nn.lora import Addition, LowRank, fuse


class LowRankFactors(nn.Module):
    """The factors of one addition per layer; a new one adds nothing.

    `down` starts as a linear layer does, `up` at zero.

    Args:
        shapes: (outputs, inputs) of the layers' weights, by name.
        rank: Of the additions; a layer that is narrower on one side gets that width, which loses nothing.

    Raises:
        ConfigError: The rank is below 1.

    Source: Hu et al. 2021, arXiv 2106.09685, section 4.1.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"rank={rank} of a LoRA is below 1; usual ones are 8 to 128")
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, (outputs, inputs) in shapes.items():
            width = min(rank, outputs, inputs)
            self.down[_key(name)] = nn.Parameter(_uniform(width, inputs))
            self.up[_key(name)] = nn.Parameter(torch.zeros(outputs, width))

    def additions(self) -> Iterator[tuple[str, LowRank]]:
        """Yield what is added to each layer, as the parameters themselves."""
        for key, down in self.down.items():
            yield key.replace("/", "."), LowRank(down=down, up=self.up[key])

    def call(self, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call a network as if the additions were in its weights, differentiably."""
        weights: dict[str, Tensor] = {}
        for name, low_rank in self.additions():
            weight = network.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            with torch.autocast(weight.device.type, enabled=False):  # as exact as what is written in the end
                weights[f"{name}.weight"] = fuse(weight, [Addition(low_rank, 1.0)])
        return functional_call(network, weights, args, kwargs)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a module's parameters bear no dots


def _uniform(outputs: int, inputs: int) -> Tensor:
    bound = float(inputs) ** -0.5
    return torch.empty(outputs, inputs).uniform_(-bound, bound)
