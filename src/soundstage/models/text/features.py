"""From all hidden states of the text encoder to one feature vector per token and stream.

Every layer of a language model knows something else about a word, so all of them are used: each is
normalised, all are laid side by side (layer fastest) and projected at once. The generations differ in the
normalisation.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from soundstage.core.types import AV, Context, ContextMask
from soundstage.models.text.config import FeatureKind, TextConfig
from soundstage.models.transformer.config import STREAMS
from soundstage.nn.lora import LoraLinear

HiddenStates = Float[Tensor, "b s d layers"]  # the embeddings, then the output of every layer

EPS = 1e-6


class LayerRangeFeatures(nn.Module):
    """LTX-2.0: centre each layer of a prompt, scale it to a range of 8, project once for both streams."""

    def __init__(self, config: TextConfig, streams: Sequence[str] = STREAMS) -> None:  # noqa: ARG002  shared
        super().__init__()
        self.aggregate_embed = nn.Linear(config.num_features, config.video.dim, bias=False)

    def forward(self, hidden_states: HiddenStates, mask: ContextMask) -> AV[Context]:
        """Extract the features; those of padding are zero."""
        flat = normalise_by_layer_range(hidden_states, mask).flatten(2)
        features = self.aggregate_embed(flat.to(self.aggregate_embed.weight))
        return AV(features, features)


class TokenRMSFeatures(nn.Module):
    """LTX-2.3 and later: scale each token of each layer to unit RMS, project for each stream.

    The factor before a projection keeps the variance of its outputs the same whatever the stream's width.
    """

    def __init__(self, config: TextConfig, streams: Sequence[str] = STREAMS) -> None:
        super().__init__()
        self.video_aggregate_embed = self.audio_aggregate_embed = None
        if "video" in streams:
            self.video_aggregate_embed = nn.Linear(config.num_features, config.video.dim)
        if "audio" in streams:
            self.audio_aggregate_embed = nn.Linear(config.num_features, config.audio.dim)

    def forward(self, hidden_states: HiddenStates, mask: ContextMask) -> AV[Context]:
        """Extract the features; those of padding are the projections' biases."""
        width = hidden_states.shape[2]
        flat = normalise_by_token_rms(hidden_states, mask).flatten(2)

        def project(layer: nn.Linear | LoraLinear | None) -> Context | None:
            if layer is None:
                return None
            features: Tensor = layer((flat * (layer.out_features / width) ** 0.5).to(layer.weight))
            return features

        return AV(project(self.video_aggregate_embed), project(self.audio_aggregate_embed))


FEATURES: dict[FeatureKind, type[LayerRangeFeatures] | type[TokenRMSFeatures]] = {
    "layer_range": LayerRangeFeatures,
    "token_rms": TokenRMSFeatures,
}


def normalise_by_layer_range(hidden_states: HiddenStates, mask: ContextMask) -> HiddenStates:
    """Map each layer of each prompt to 8 (x - mean) / (max - min), over its valid tokens and all widths."""
    states = hidden_states.float()
    valid = mask.to(states.device).bool()[:, :, None, None]
    count = valid.sum((1, 2), keepdim=True) * states.shape[2]
    mean = states.where(valid, 0).sum((1, 2), keepdim=True) / (count + EPS)
    highest = states.where(valid, -torch.inf).amax((1, 2), keepdim=True)
    lowest = states.where(valid, torch.inf).amin((1, 2), keepdim=True)
    return (8 * (states - mean) / (highest - lowest + EPS)).where(valid, 0)


def normalise_by_token_rms(hidden_states: HiddenStates, mask: ContextMask) -> HiddenStates:
    """Scale each token of each layer to unit root mean square."""
    states = hidden_states.float()
    valid = mask.to(states.device).bool()[:, :, None, None]
    normed = states * torch.rsqrt(states.square().mean(2, keepdim=True) + EPS)
    return normed.where(valid, 0)
