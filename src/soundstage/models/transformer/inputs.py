"""What one call of the transformer is given: each stream's tokens, and what guidance switches off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import BatchSigma, ContextMask, Timesteps, TokenMask
from soundstage.models.transformer.attention_weights import DenseAttentionWeights, FactoredAttentionWeights
from soundstage.models.transformer.negative_text import NegativeText

NoisyTokens = Float[Tensor, "b n c"]
TokenPositions = Float[Tensor, "#b axes n 2"]
AudioPositions = Float[Tensor, "#b 1 n_audio 2"]
TextFeatures = Float[Tensor, "b s d"]
Blocks = frozenset[int] | Literal["all"]
Skip = Bool[Tensor, " b"] | bool  # which items skip a layer; False = none of them, True = all


@dataclass(frozen=True, kw_only=True)
class StreamInput:
    """One stream's tokens as the network sees them."""

    latents: NoisyTokens
    timesteps: Timesteps  # per token: denoise mask times sigma
    sigma: BatchSigma  # the schedule's level; 0 when the stream is given, not generated
    positions: TokenPositions  # [start, end) in seconds and pixels; one row can serve the whole batch
    context: TextFeatures
    context_mask: ContextMask | None = None  # 1 = attend
    context_weights: FactoredAttentionWeights | None = None  # token to text, [0, 1]; in place of the mask
    negative_text: NegativeText | None = None  # what text attention is to steer away from
    attention_weights: DenseAttentionWeights | FactoredAttentionWeights | None = (
        None  # self-attention, [0, 1]
    )
    keyframe_mask: TokenMask | None = None  # 1 on the first latent frame and generated keyframes (2.5)
    enabled: bool = True  # False: the stream stands still and only serves the other one


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """What guidance switches off for one item of the batch, as block indices.

    A skipped self-attention passes its values through (spatio-temporal guidance); a skipped cross-modal
    attention adds nothing (modality guidance).
    """

    skip_video_self_attention: Blocks = frozenset()
    skip_audio_self_attention: Blocks = frozenset()
    skip_a2v: Blocks = frozenset()
    skip_v2a: Blocks = frozenset()

    def check(self, num_layers: int) -> None:
        """Raise a `RequestError` when a block does not exist."""
        for field in fields(self):
            blocks = getattr(self, field.name)
            for block in () if blocks == "all" else sorted(blocks):
                if not 0 <= block < num_layers:
                    raise RequestError(
                        f"{field.name}: block {block} does not exist; blocks are 0 to {num_layers - 1}"
                    )


class BlockSkips(NamedTuple):
    """What one block leaves out, for which items of the batch."""

    video_self_attention: Skip = False
    audio_self_attention: Skip = False
    a2v: Skip = False
    v2a: Skip = False

    @classmethod
    def of(
        cls, perturbations: Sequence[Perturbation] | None, block: int, device: torch.device
    ) -> "BlockSkips":
        """Look up what the block with that index leaves out."""
        if not perturbations:
            return cls()

        def skip(blocks_of: Callable[[Perturbation], Blocks]) -> Skip:
            items = [(blocks := blocks_of(p)) == "all" or block in blocks for p in perturbations]
            mixed = any(items) and not all(items)
            return torch.tensor(items, device=device) if mixed else items[0]

        return cls(
            skip(lambda p: p.skip_video_self_attention),
            skip(lambda p: p.skip_audio_self_attention),
            skip(lambda p: p.skip_a2v),
            skip(lambda p: p.skip_v2a),
        )
