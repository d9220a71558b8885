"""What one call of the transformer is given: each stream's tokens, and what guidance switches off."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.types import AV, BatchSigma, ContextMask, Timesteps, TokenMask
from soundstage.models.transformer.attention_weights import DenseAttentionWeights, FactoredAttentionWeights
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.modulation import NoiseLevels
from soundstage.models.transformer.negative_text import NegativeText
from soundstage.models.transformer.step_cache import StepCache
from soundstage.nn.attention_parts import AttentionParts

NoisyTokens = Float[Tensor, "b n c"]
TokenPositions = Float[Tensor, "#b axes n 2"]
AudioPositions = Float[Tensor, "#b 1 n_audio 2"]
TextFeatures = Float[Tensor, "b s d"]
Blocks = frozenset[int] | Literal["all"]
# Weights in [0, 1]; cut into parts before the first step, or else in every one.
SparseWeights = FactoredAttentionWeights | AttentionParts


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A text as the tokens of one stream read it. Texts are told apart by identity."""

    context: TextFeatures
    mask: ContextMask | None = None  # 1 = attend
    weights: SparseWeights | None = None  # token to text; in place of the mask
    negative: NegativeText | None = None  # what text attention is to steer away from


@dataclass(frozen=True, kw_only=True)
class StreamInput:
    """One stream's tokens as the network sees them."""

    latents: NoisyTokens
    timesteps: Timesteps  # per token: denoise mask times sigma
    sigma: BatchSigma  # the schedule's level; 0 when the stream is given, not generated
    positions: TokenPositions  # [start, end) in seconds and pixels; one row can serve the whole batch
    context: TextFeatures
    context_mask: ContextMask | None = None  # 1 = attend
    context_weights: SparseWeights | None = None  # token to text; in place of the mask
    negative_text: NegativeText | None = None  # what text attention is to steer away from
    attention_weights: DenseAttentionWeights | SparseWeights | None = None  # self-attention, [0, 1]
    keyframe_mask: TokenMask | None = None  # 1 on the first latent frame and generated keyframes (2.5)
    enabled: bool = True  # False: the stream stands still and only serves the other one
    levels: NoiseLevels | None = None  # the distinct `timesteps`, if known; else they are searched for

    @property
    def text(self) -> Text:
        """What the stream's tokens read, as one."""
        return Text(
            context=self.context,
            mask=self.context_mask,
            weights=self.context_weights,
            negative=self.negative_text,
        )


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
        for part in fields(self):
            blocks = getattr(self, part.name)
            for block in () if blocks == "all" else sorted(blocks):
                if not 0 <= block < num_layers:
                    raise RequestError(
                        f"{part.name}: block {block} does not exist; blocks are 0 to {num_layers - 1}"
                    )


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One of several passes over the same tokens."""

    perturbation: Perturbation = field(default_factory=Perturbation)
    texts: AV[Text] = field(default_factory=AV)  # in place of those that come with the streams


class BlockSkips(NamedTuple):
    """What one block leaves out for one item or pass."""

    video_self_attention: bool = False
    audio_self_attention: bool = False
    a2v: bool = False
    v2a: bool = False

    @classmethod
    def of(cls, perturbation: Perturbation, block: int) -> "BlockSkips":
        """Look up what the block with that index leaves out."""

        def skips(blocks: Blocks) -> bool:
            return blocks == "all" or block in blocks

        return cls(
            skips(perturbation.skip_video_self_attention),
            skips(perturbation.skip_audio_self_attention),
            skips(perturbation.skip_a2v),
            skips(perturbation.skip_v2a),
        )


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Several passes over the same tokens: what each is without, and what each reads.

    Passes are rows of the result, one behind the other. They share all work up to where they part.
    """

    branches: tuple[Branch, ...]
    kept: Kept | None = field(default_factory=Kept)  # of the run that the call belongs to; None keeps nothing
    rows_at_once: int | None = None  # rows that a layer takes together: 1 needs the least memory
    watched: int = 0  # the branch that a `watch` is shown
    cache: StepCache | None = None  # of the run; approximate


def texts_of(
    name: Literal["video", "audio"], stream: StreamInput, branches: Sequence[Branch]
) -> tuple[Sequence[Text], Sequence[int]]:
    """List the distinct texts of all branches for a stream, and which of them each branch reads."""
    own, texts, text_of = stream.text, list[Text](), []
    for branch in branches:
        text = (branch.texts.video if name == "video" else branch.texts.audio) or own
        if not any(text is other for other in texts):
            texts.append(text)
        text_of.append(next(i for i, other in enumerate(texts) if text is other))
    return texts, text_of
