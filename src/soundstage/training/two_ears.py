"""Train a stereo vocoder as one ear's vocoder used twice.

Left and right are alike, so a stereo vocoder that starts from random weights makes both ears the same and
stays there: the difference is too small to leave that saddle (measured, see docs/experiments.md). A vocoder
of half the width that hears one ear cannot confuse them, needs a quarter of the arithmetic and learns from
both ears of every sound. Two copies of it side by side, as blocks of a diagonal, are a stereo vocoder of the
usual layout.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.errors import CheckpointError, ConfigError
from soundstage.core.types import LogMel
from soundstage.models.vocoder.config import VocoderConfig
from soundstage.models.vocoder.hifigan import HiFiGANVocoder


class TwoEars(nn.Module):
    """The same single-channel vocoder for the left and the right ear.

    Args:
        config: Of the stereo vocoder that two copies make.

    Raises:
        ConfigError: That is not a stereo vocoder without bandwidth extension, or its width cannot be halved.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        generator = config.generator
        if config.bandwidth_extension or not generator.stereo or generator.resblock != "1":
            raise ConfigError("one_ear=true needs a stereo vocoder of resblock 1 without bandwidth extension")
        half = replace(
            generator, stereo=False, upsample_initial_channel=generator.upsample_initial_channel // 2
        )
        self.ear = HiFiGANVocoder(VocoderConfig(generator=half))

    def forward(self, mel: LogMel) -> Float[Tensor, "b 2 samples"]:
        """Synthesise both ears, each from its own spectrogram."""
        heard: Tensor = self.ear(rearrange(mel, "b ears t m -> (b ears) 1 t m"))
        return rearrange(heard, "(b ears) 1 samples -> b ears samples", ears=2)

    def stereo_state_dict(self) -> dict[str, Tensor]:
        """Lay two copies of the weights side by side: the state dict of the stereo vocoder."""
        return {name: _twice(tensor) for name, tensor in self.ear.state_dict().items()}

    def load_stereo(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take one ear from a stereo vocoder that `stereo_state_dict` made.

        Raises:
            CheckpointError: The two ears differ, or do not keep apart.
        """
        ear = {name: _first(tensors[prefix + name], like) for name, like in self.ear.state_dict().items()}
        for name, tensor in ear.items():
            if not torch.equal(_twice(tensor), tensors[prefix + name].to(tensor)):
                raise CheckpointError(
                    f"{prefix}{name} is not the same for both ears; train with one_ear=false"
                )
        self.ear.load_state_dict(ear)


def _first(tensor: Tensor, like: Tensor) -> Tensor:
    """Cut the first of two copies out."""
    kept = tensor[: like.shape[0]]
    return (kept if like.ndim == 1 else kept[:, : like.shape[1]]).to(like)


def _twice(tensor: Tensor) -> Tensor:
    """Repeat a bias; put a kernel twice on the diagonal of a kernel of twice the channels."""
    if tensor.ndim == 1:
        return tensor.repeat(2)
    rows, columns = tensor.shape[:2]
    doubled = tensor.new_zeros(2 * rows, 2 * columns, *tensor.shape[2:])
    doubled[:rows, :columns] = doubled[rows:, columns:] = tensor
    return doubled
