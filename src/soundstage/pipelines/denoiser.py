"""The transformer with its conditions as a denoiser: what each guidance pass changes about the call.

| pass | text | perturbation |
|---|---|---|
| `cond` | prompt | none |
| `uncond` | negative prompt | none |
| `perturbed` | prompt | self-attention of the listed blocks passes its values through |
| `isolated` | prompt | both cross-modal attentions off in all blocks |

Passes that read the prompt also read the prompts that hold at times of their own, and may steer away from the
negative prompt inside text attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from soundstage.core.types import AV
from soundstage.diffusion.flow import to_denoised
from soundstage.diffusion.guidance import GuidancePlan, Pass
from soundstage.models.transformer.attention_weights import FactoredAttentionWeights
from soundstage.models.transformer.inputs import Perturbation, StreamInput
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.negative_text import NegativeText
from soundstage.pipelines.attention_recorder import AttentionRecorder
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.text_conditioning import Contexts

SMALL_BATCH = 512  # tokens of both streams up to which passes are run together


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
        recorder: AttentionRecorder | None = None,
    ) -> None:
        """Prepare what stays the same over all steps.

        Args:
            batch_passes: Run the passes of a step together; decided by the number of tokens when absent.
            recorder: Shown the attention between the streams in the conditional pass.
        """
        self.transformer = transformer
        self.streams = streams
        self.contexts = contexts
        self.perturbations = _perturbations(plan.reduced(streams))
        positions = streams.map(lambda state: state.positions[:1])
        self.ropes = transformer.prepare(positions.video, positions.audio)
        num_tokens = sum(s.clean.shape[1] for s in (streams.video, streams.audio) if s is not None)
        self.batch_passes = num_tokens <= SMALL_BATCH if batch_passes is None else batch_passes
        self.text_weights = contexts.weights(positions)
        self.recorder = recorder

    @torch.no_grad()
    def __call__(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Return one prediction per pass, in order."""
        predictions: dict[Pass, AV[Tensor]] = {}
        for group in self._groups(passes):
            predictions.update(zip(group, self._run(noisy, sigma, group), strict=True))
        return [predictions[name] for name in passes]

    def _groups(self, passes: Sequence[Pass]) -> list[Sequence[Pass]]:
        """Sort passes into calls: together, alone, or by how they read their text."""
        if not self.batch_passes:
            return [[name] for name in passes]
        if self.contexts.is_plain:
            return [passes]
        groups = ([name for name in passes if (name == "uncond") == negative] for negative in (False, True))
        return [group for group in groups if group]

    def _run(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Call the network once for several passes, one behind the other in the batch."""
        contexts = [self.contexts.of(name) for name in passes]
        weights, away = self._beside_text(sigma, passes)
        video = _stream_input(
            self.streams.video, noisy.video, sigma, [c.video for c in contexts], weights.video, away.video
        )
        audio = _stream_input(
            self.streams.audio, noisy.audio, sigma, [c.audio for c in contexts], weights.audio, away.audio
        )
        tokens = noisy.video if noisy.video is not None else noisy.audio
        assert tokens is not None
        perturbations = [self.perturbations[name] for name in passes for _ in range(tokens.shape[0])]
        watch = None
        if self.recorder is not None and "cond" in passes:
            watch = self.recorder.watch(sigma, passes.index("cond") * tokens.shape[0])
        velocity = self.transformer(video, audio, perturbations, self.ropes, watch=watch)
        denoised = AV(_denoised(video, velocity.video), _denoised(audio, velocity.audio))
        split = denoised.map(lambda x: x.chunk(len(passes)))
        return [
            AV(split.video[i] if split.video else None, split.audio[i] if split.audio else None)
            for i in range(len(passes))
        ]

    def _beside_text(
        self, sigma: float, passes: Sequence[Pass]
    ) -> tuple[AV[FactoredAttentionWeights], AV[NegativeText]]:
        """Return the weights and negative texts of passes; the negative prompt's own pass has neither."""
        if "uncond" in passes:
            return AV(), AV()
        away = self.contexts.negative_text if self.contexts.steers(sigma) else AV()
        return self.text_weights, away


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
    state: StreamState | None,
    noisy: Tensor | None,
    sigma: float,
    contexts: Sequence[Tensor | None],
    weights: FactoredAttentionWeights | None = None,
    away: NegativeText | None = None,
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
        context_weights=weights,
        negative_text=None if away is None or state.frozen else _repeated(away, batch * count),
        attention_weights=state.attention_weights,
        keyframe_mask=None if keyframes is None else keyframes.expand(batch, -1, -1).repeat(count, 1, 1),
    )


def _repeated(away: NegativeText, count: int) -> NegativeText:
    return replace(away, context=away.context.expand(count, -1, -1))


def _denoised(stream: StreamInput | None, velocity: Tensor | None) -> Tensor | None:
    if stream is None or velocity is None:
        return None
    return to_denoised(stream.latents, velocity, stream.timesteps)
