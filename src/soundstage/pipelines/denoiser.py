"""The transformer with its conditions as a denoiser: what each guidance pass changes about the call.

| pass | text | perturbation |
|---|---|---|
| `cond` | prompt | none |
| `uncond` | negative prompt | none |
| `perturbed` | prompt | self-attention of the listed blocks passes its values through |
| `isolated` | prompt | both cross-modal attentions off in all blocks |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soundstage.core.types import AV, Context
from soundstage.diffusion.flow import to_denoised
from soundstage.diffusion.guidance import GuidancePlan, Pass
from soundstage.models.transformer.inputs import Perturbation, StreamInput
from soundstage.models.transformer.model import AVTransformer
from soundstage.pipelines.conditions import StreamState

SMALL_BATCH = 512  # tokens of both streams up to which passes are run together


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Text features of the prompt and, where guidance needs it, of the negative prompt."""

    prompt: AV[Context]
    negative: AV[Context] | None = None

    def of(self, name: Pass) -> AV[Context]:
        """Return what a pass attends to; a stream without a negative prompt keeps its prompt."""
        if name != "uncond" or self.negative is None:
            return self.prompt
        video, audio = self.negative.video, self.negative.audio
        return AV(
            self.prompt.video if video is None else video, self.prompt.audio if audio is None else audio
        )


class TransformerDenoiser:
    """Predicts denoised tokens for guidance passes over the same noisy tokens.

    A small clip's passes are run as one batch, where the overhead of the many small operations dominates; a
    large one's after each other, where memory does.
    """

    def __init__(
        self,
        transformer: AVTransformer,
        streams: AV[StreamState],
        contexts: Contexts,
        plan: GuidancePlan,
        *,
        batch_passes: bool | None = None,
    ) -> None:
        """Prepare what stays the same over all steps.

        Args:
            batch_passes: Run the passes of a step together; decided by the number of tokens when absent.
        """
        self.transformer = transformer
        self.streams = streams
        self.contexts = contexts
        self.perturbations = _perturbations(plan.reduced(streams))
        positions = streams.map(lambda state: state.positions[:1])
        self.ropes = transformer.prepare(positions.video, positions.audio)
        num_tokens = sum(s.clean.shape[1] for s in (streams.video, streams.audio) if s is not None)
        self.batch_passes = num_tokens <= SMALL_BATCH if batch_passes is None else batch_passes

    @torch.no_grad()
    def __call__(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Return one prediction per pass, in order."""
        groups = [passes] if self.batch_passes else [[name] for name in passes]
        return [prediction for group in groups for prediction in self._run(noisy, sigma, group)]

    def _run(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Call the network once for several passes, one behind the other in the batch."""
        contexts = [self.contexts.of(name) for name in passes]
        video = _stream_input(self.streams.video, noisy.video, sigma, [c.video for c in contexts])
        audio = _stream_input(self.streams.audio, noisy.audio, sigma, [c.audio for c in contexts])
        tokens = noisy.video if noisy.video is not None else noisy.audio
        assert tokens is not None
        perturbations = [self.perturbations[name] for name in passes for _ in range(tokens.shape[0])]
        velocity = self.transformer(video, audio, perturbations, self.ropes)
        denoised = AV(_denoised(video, velocity.video), _denoised(audio, velocity.audio))
        split = denoised.map(lambda x: x.chunk(len(passes)))
        return [
            AV(split.video[i] if split.video else None, split.audio[i] if split.audio else None)
            for i in range(len(passes))
        ]


def _perturbations(plan: GuidancePlan) -> Mapping[Pass, Perturbation]:
    return {
        "cond": Perturbation(),
        "uncond": Perturbation(),
        "perturbed": Perturbation(
            skip_video_self_attention=plan.blocks.video or frozenset(),
            skip_audio_self_attention=plan.blocks.audio or frozenset(),
        ),
        "isolated": Perturbation(skip_a2v="all", skip_v2a="all"),
    }


def _stream_input(
    state: StreamState | None, noisy: Tensor | None, sigma: float, contexts: Sequence[Tensor | None]
) -> StreamInput | None:
    """Repeat one stream for every pass: only the text differs."""
    if state is None or noisy is None:
        return None
    given = [context for context in contexts if context is not None]
    batch, count = noisy.shape[0], len(given)
    level = 0.0 if state.frozen else sigma
    mask = state.denoise_mask.expand(batch, -1, -1).repeat(count, 1, 1)
    keyframes = state.keyframe_mask
    return StreamInput(
        latents=noisy.repeat(count, 1, 1),
        timesteps=level * mask[..., 0],
        sigma=mask.new_full((batch * count,), level),
        positions=state.positions[:1],
        context=torch.cat([context.expand(batch, -1, -1) for context in given]),
        attention_weights=state.attention_weights,
        keyframe_mask=None if keyframes is None else keyframes.expand(batch, -1, -1).repeat(count, 1, 1),
    )


def _denoised(stream: StreamInput | None, velocity: Tensor | None) -> Tensor | None:
    if stream is None or velocity is None:
        return None
    return to_denoised(stream.latents, velocity, stream.timesteps)
