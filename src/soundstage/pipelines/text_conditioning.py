"""What the passes of a run read: the prompts and when each holds, and the texts to steer away from.

Prompts that hold at different times stand one behind the other in a single context; weights say which part of
it a token reads, by the token's time. They are kept as one row and one column per prompt:

    context   | base prompt | prompt 1 | prompt 2 |
    token at 0.1 s    0           1          0
    token at 2.0 s    0          0.5        0.5        half-way from one prompt to the next
    token at 5.0 s    1           0          0         none given: the base prompt
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from soundstage.core.types import AV, Context, Positions
from soundstage.diffusion.guidance import Pass, When
from soundstage.models.transformer.attention_weights import FactoredAttentionWeights
from soundstage.models.transformer.negative_text import NegativeText
from soundstage.pipelines.prompt_spans import PromptSpan, prompt_shares
from soundstage.pipelines.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class PromptSchedule:
    """When each of several prompts holds."""

    spans: tuple[PromptSpan, ...]
    transition: float  # seconds
    start: float = 0.0  # seconds of the result at which what is generated begins

    def weights(self, positions: Positions, num_words: int) -> FactoredAttentionWeights:
        """Say how much each token reads of each prompt, by the middle of its time.

        Args:
            num_words: Text positions of each prompt.
        """
        middle = positions[0, 0].mean(-1)
        moments, lookup = torch.unique(middle, return_inverse=True)
        shares = [
            prompt_shares(self.spans, self.start + moment, self.transition) for moment in moments.tolist()
        ]
        rows = torch.tensor(shares, device=positions.device)[lookup].T  # (prompts, n)
        columns = torch.eye(len(rows), device=positions.device).repeat_interleave(num_words, dim=1)
        return FactoredAttentionWeights(rows=rows[None].contiguous(), columns=columns[None])


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Text features of the prompt and, where guidance needs it, of the negative prompt."""

    prompt: AV[Context]  # with a schedule, the base prompt and those of its spans behind each other
    negative: AV[Context] | None = None
    schedule: PromptSchedule | None = None
    negative_text: AV[NegativeText] = field(default_factory=AV)  # for passes that read the prompt
    interval: tuple[float, float] = (0.0, 1.0)  # noise levels at which it steers

    def starting_at(self, seconds: float) -> "Contexts":
        """Return the same for a part of the result that begins later."""
        return (
            self if self.schedule is None else replace(self, schedule=replace(self.schedule, start=seconds))
        )

    def of(self, name: Pass) -> AV[Context]:
        """Return what a pass attends to; a stream without a negative prompt keeps its prompt."""
        if name != "uncond" or self.negative is None:
            return self.prompt
        video, audio = self.negative.video, self.negative.audio
        return AV(
            self.prompt.video if video is None else video, self.prompt.audio if audio is None else audio
        )

    def weights(self, positions: AV[Positions]) -> AV[FactoredAttentionWeights]:
        """Say which prompt each token reads."""
        schedule, count = self.schedule, len(self.schedule.spans) + 1 if self.schedule else 1

        def of(places: Tensor | None, text: Tensor | None) -> FactoredAttentionWeights | None:
            if schedule is None or places is None or text is None:
                return None
            return schedule.weights(places, text.shape[1] // count)

        return AV(of(positions.video, self.prompt.video), of(positions.audio, self.prompt.audio))

    def steers(self, sigma: float) -> bool:
        """Tell whether the negative text steers at a noise level."""
        return When(interval=self.interval).applies(sigma)


def make_contexts(
    request: GenerationRequest, prompts: Sequence[AV[Context]], negative: AV[Context] | None, *, guided: bool
) -> Contexts:
    """Put together what a request's passes read.

    Args:
        prompts: The base prompt and those of the request's spans, in order.
        guided: Whether guidance compares with the negative prompt in a pass of its own.
    """
    spans = request.spans
    return Contexts(
        prompt=prompts[0] if not spans else AV(_join(prompts, "video"), _join(prompts, "audio")),
        negative=negative if guided else None,
        schedule=PromptSchedule(spans=spans, transition=request.prompt_transition) if spans else None,
        negative_text=AV() if negative is None else _negative_text(request, negative),
        interval=request.guidance_interval,
    )


def joined(contexts: Sequence[Contexts]) -> Contexts:
    """Put the contexts of several clips, without schedules, behind each other along the batch."""

    def along(streams: Sequence[AV[Context]]) -> AV[Context]:
        return AV(_along(streams, "video"), _along(streams, "audio"))

    negatives = [one.negative for one in contexts if one.negative is not None]
    return replace(
        contexts[0],
        prompt=along([one.prompt for one in contexts]),
        negative=along(negatives) if negatives else None,
    )


def _along(prompts: Sequence[AV[Context]], stream: str) -> Context | None:
    parts: list[Tensor] = [part for prompt in prompts if (part := getattr(prompt, stream)) is not None]
    return torch.cat(parts) if parts else None


def _negative_text(request: GenerationRequest, negative: AV[Context]) -> AV[NegativeText]:
    def of(context: Context | None, scale: float) -> NegativeText | None:
        if context is None or scale == 1 or request.nag_alpha == 0:
            return None
        return NegativeText(context=context, scale=scale, tau=request.nag_tau, alpha=request.nag_alpha)

    video, audio = request.nag_scales
    return AV(of(negative.video, video), of(negative.audio, audio))


def _join(prompts: Sequence[AV[Context]], stream: str) -> Context | None:
    contexts: list[Tensor] = [part for prompt in prompts if (part := getattr(prompt, stream)) is not None]
    return torch.cat(contexts, dim=1) if contexts else None
