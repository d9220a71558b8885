"""A denoiser that is one of several: it runs its share of the passes, on its share of the video tokens."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from soundstage.core.types import AV
from soundstage.diffusion.denoise import Denoiser
from soundstage.diffusion.guidance import Pass
from soundstage.models.transformer.model import AVTransformer
from soundstage.pipelines.conditions import StreamState
from soundstage.runtime.distributed import Team, check_heads, shared_tokens

MakeDenoiser = Callable[[AV[StreamState]], Denoiser]


class TeamDenoiser:
    """Gives every process the same predictions, bit for bit, so that all samplers take the same steps."""

    def __init__(
        self, make: MakeDenoiser, transformer: AVTransformer, streams: AV[StreamState], team: Team
    ) -> None:
        """Share out one stage.

        Args:
            make: Makes the denoiser of this process, for the tokens that are its own.

        Raises:
            RequestError: The tokens or the heads cannot be dealt out to so many.
        """
        self.team = team
        self.transformer = transformer
        video = streams.video
        self.num_tokens = 0 if video is None else video.clean.shape[1]
        self.shares_tokens = team.sequence.size > 1 and self.num_tokens >= team.sequence.size
        if self.shares_tokens and video is not None:
            check_heads(transformer, team.sequence)
            streams = AV(_cut(video, team.sequence.share(self.num_tokens)), streams.audio)
        self.denoiser = make(streams)

    def __call__(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Return one prediction per pass, in order."""
        group = self.team.guidance
        rounds = -(-len(passes) // group.size)
        places = [turn * group.size + group.rank for turn in range(rounds)]
        mine = [passes[min(place, len(passes) - 1)] for place in places]
        if places[-1] >= len(passes) and not self.team.in_step:
            mine.pop()  # there is nothing left for this process
        own = self._run(noisy, sigma, mine) if mine else []
        like = noisy.map(lambda x: torch.zeros_like(x, dtype=torch.float32))
        own += [like] * (rounds - len(own))
        together: list[AV[Tensor]] = []
        for prediction in own:
            gathered = prediction.map(lambda x: group.gather(x.float()[None], dim=0))
            together += [_pick(gathered, rank) for rank in range(group.size)]
        return together[: len(passes)]

    def _run(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Predict for this process's tokens, and bring all tokens together."""
        group = self.team.sequence
        if not self.shares_tokens or noisy.video is None:
            return self.denoiser(noisy, sigma, passes)
        local = AV(noisy.video[:, group.share(self.num_tokens)], noisy.audio)
        with shared_tokens(self.transformer, group, self.num_tokens):
            predictions = self.denoiser(local, sigma, passes)
        return [AV(self._joined(prediction.video), prediction.audio) for prediction in predictions]

    def _joined(self, video: Tensor | None) -> Tensor:
        assert video is not None
        longest = self.team.sequence.shares(self.num_tokens)[0]
        padded = F.pad(video, (0, 0, 0, longest - video.shape[1]))
        return self.team.sequence.gather(padded, dim=1)[:, : self.num_tokens]


def _cut(state: StreamState, tokens: slice) -> StreamState:
    """Keep some tokens of a stream; who sees whom stays that of all tokens, among which attention is."""
    cut = replace(
        state,
        latents=state.latents[:, tokens],
        clean=state.clean[:, tokens],
        denoise_mask=state.denoise_mask[:, tokens],
        positions=state.positions[:, :, tokens],
        groups=state.groups[tokens],
        strengths=state.strengths[tokens],
        keyframe_mask=None if state.keyframe_mask is None else state.keyframe_mask[:, tokens],
    )
    cut.__dict__["attention_weights"] = state.attention_weights
    return cut


def _pick(gathered: AV[Tensor], rank: int) -> AV[Tensor]:
    return gathered.map(lambda x: x[rank])
