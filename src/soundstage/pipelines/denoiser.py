"""The transformer with its conditions as a denoiser: what each guidance pass changes about the call.

| pass | text | perturbation |
|---|---|---|
| `cond` | prompt | none |
| `uncond` | negative prompt | none |
| `perturbed` | prompt | self-attention of the listed blocks passes its values through |
| `isolated` | prompt | both cross-modal attentions off in all blocks |

Passes that read the prompt also read the prompts that hold at times of their own, and may steer away from the
negative prompt inside text attention.

All passes of a step go through the blocks together and share what they have in common: the first
self-attention, and `perturbed` everything before its first perturbed block. What stays the same over the
steps (positions, texts and what the blocks read of them, who attends to whom, noise levels up to a factor) is
made once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from soundstage.core.types import AV
from soundstage.diffusion.flow import to_denoised
from soundstage.diffusion.guidance import GuidancePlan, Pass
from soundstage.models.transformer.attention_weights import cut_up
from soundstage.models.transformer.inputs import Branch, Passes, Perturbation, StreamInput, Text
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.model import AVTransformer
from soundstage.models.transformer.modulation import NoiseLevels
from soundstage.models.transformer.negative_text import NegativeText
from soundstage.models.transformer.step_cache import StepCache
from soundstage.nn.attention_parts import AttentionParts
from soundstage.nn.kernels.lookup import Lookup
from soundstage.pipelines.attention_recorder import AttentionRecorder
from soundstage.pipelines.batching import activation_numbers, batch_sizes
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.text_conditioning import Contexts

ORDER: tuple[Pass, ...] = ("uncond", "cond", "perturbed", "isolated")  # neighbours share most


Forward = Callable[..., AV[Tensor]]  # of the transformer's arguments


class TransformerDenoiser:
    """Predicts denoised tokens for guidance passes over the same noisy tokens.

    A layer takes as many rows together as the plan has room for and gains by, a row being one pass of one
    clip; see `batching`. However many these are, every block's weights are asked for once per step.
    """

    def __init__(
        self,
        transformer: AVTransformer,
        streams: AV[StreamState],
        contexts: Contexts,
        plan: GuidancePlan,
        *,
        rows_at_once: int | None = None,
        keep_texts: bool = True,
        recorder: AttentionRecorder | None = None,
        cache: StepCache | None = None,
        forward: Forward | None = None,
    ) -> None:
        """Prepare what stays the same over all steps.

        Args:
            rows_at_once: How many rows a layer takes together, at most; as many as gain by it when absent,
                which without a plan is decided regardless of memory.
            keep_texts: Keep what the blocks read of the texts, where that is the same at all noise levels;
                costs `AVTransformer.kept_bytes`.
            recorder: Shown the attention between the streams in the conditional pass.
            cache: Of this run, to leave blocks out in some steps; approximate.
            forward: Called in place of the transformer, with the same arguments, such as CUDA graphs of it.
        """
        self.transformer = transformer
        self.forward: Forward = transformer if forward is None else forward
        self.cache = cache
        self.streams = streams
        self.contexts = contexts
        self.perturbations = _perturbations(plan.reduced(streams))
        positions = streams.map(lambda state: state.positions[:1])
        self.ropes = transformer.prepare(positions.video, positions.audio)
        self.rows_at_once = rows_at_once
        self.kept = Kept() if keep_texts else None
        self.recorder = recorder
        self._texts = _Texts(contexts, streams, transformer.dtype)
        self._fixed = streams.map(lambda state: _Fixed(state, transformer.dtype))

    @torch.no_grad()
    def __call__(self, noisy: AV[Tensor], sigma: float, passes: Sequence[Pass]) -> list[AV[Tensor]]:
        """Return one prediction per pass, in order."""
        order = [name for name in ORDER if name in passes]
        video = _stream_input(
            self.streams.video, noisy.video, sigma, self._fixed.video, self._texts.plain.video
        )
        audio = _stream_input(
            self.streams.audio, noisy.audio, sigma, self._fixed.audio, self._texts.plain.audio
        )
        together = Passes(
            branches=tuple(
                Branch(
                    perturbation=self.perturbations[name],
                    texts=self._texts.of(name, steering=self.contexts.steers(sigma)),
                )
                for name in order
            ),
            kept=self.kept,
            rows_at_once=self.rows_at_once or self._worthwhile(noisy, len(order)),
            watched=order.index("cond") if "cond" in order else 0,
            cache=self.cache,
        )
        watch = None
        if self.recorder is not None and "cond" in order:
            watch = self.recorder.watch(sigma)
        velocity = self.forward(video, audio, None, self.ropes, watch=watch, passes=together)
        predictions = {
            name: AV(
                _denoised(video, velocity.video, index, len(order)),
                _denoised(audio, velocity.audio, index, len(order)),
            )
            for index, name in enumerate(order)
        }
        return [predictions[name] for name in passes]

    def _worthwhile(self, noisy: AV[Tensor], num_passes: int) -> int:
        """Return how many rows gain by going together."""
        first = noisy.audio if noisy.video is None else noisy.video
        assert first is not None
        numbers = activation_numbers(self.transformer.config, noisy.map(lambda tokens: tokens.shape[1]))
        return batch_sizes(num_passes * len(first), numbers, is_gpu=first.device.type != "cpu")[0]


class _Texts:
    """The texts of a run as the network reads them, made once: what is kept of a text is kept by identity."""

    def __init__(self, contexts: Contexts, streams: AV[StreamState], dtype: torch.dtype) -> None:
        weights = contexts.weights(streams.map(lambda state: state.positions[:1]))
        video, audio = cut_up(weights.video, dtype), cut_up(weights.audio, dtype)
        prompt, negative, away = contexts.prompt, contexts.of("uncond"), contexts.negative_text
        self.plain = AV(
            _text(prompt.video, video, streams.video),
            _text(prompt.audio, audio, streams.audio),
        )
        self.steered = AV(
            _steered(self.plain.video, away.video, streams.video),
            _steered(self.plain.audio, away.audio, streams.audio),
        )
        self.negative = AV(
            _unless_same(negative.video, self.plain.video, streams.video),
            _unless_same(negative.audio, self.plain.audio, streams.audio),
        )

    def of(self, name: Pass, *, steering: bool) -> AV[Text]:
        """Return what a pass reads; the negative prompt's own pass has no times and no steering."""
        if name == "uncond":
            return self.negative
        return self.steered if steering else self.plain


class _Fixed:
    """What is found once by looking at a stream's values, which waits for the device.

    These are the distinct noise levels of its tokens, as multiples of the schedule's, and who sees whom.
    """

    def __init__(self, state: StreamState, dtype: torch.dtype) -> None:
        self.attention_weights = cut_up(state.attention_weights, dtype)
        self.factors, row_of = torch.unique(state.denoise_mask[..., 0], return_inverse=True)
        self.lookup = None if len(self.factors) == 1 else Lookup.of(row_of)

    def levels(self, level: float) -> NoiseLevels:
        """Return the levels at one of the schedule's."""
        return NoiseLevels(level * self.factors, self.lookup)


def _text(context: Tensor | None, weights: AttentionParts | None, state: StreamState | None) -> Text | None:
    return None if context is None or state is None else Text(context=context, weights=weights)


def _steered(text: Text | None, away: NegativeText | None, state: StreamState | None) -> Text | None:
    if text is None or away is None or state is None or state.frozen:
        return text
    return replace(text, negative=away)


def _unless_same(context: Tensor | None, prompt: Text | None, state: StreamState | None) -> Text | None:
    """Make the text of the negative prompt; the prompt's own where it stands in for a missing one."""
    if prompt is not None and context is prompt.context and prompt.weights is None:
        return prompt
    return _text(context, None, state)


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
    fixed: _Fixed | None,
    text: Text | None,
) -> StreamInput | None:
    """Say what all passes have in common; the texts that differ come with the passes."""
    if state is None or noisy is None or fixed is None or text is None:
        return None
    batch = noisy.shape[0]
    level = 0.0 if state.frozen else sigma
    mask = state.denoise_mask.expand(batch, -1, -1)[..., 0]
    keyframes = state.keyframe_mask
    return StreamInput(
        latents=noisy,
        timesteps=level * mask,
        sigma=mask.new_full((1,), level).expand(batch),
        positions=state.positions[:1],
        context=text.context.expand(batch, -1, -1),
        attention_weights=fixed.attention_weights,
        keyframe_mask=None if keyframes is None else keyframes.expand(batch, -1, -1),
        levels=fixed.levels(level),
    )


def _denoised(
    stream: StreamInput | None, velocity: Tensor | None, index: int, num_passes: int
) -> Tensor | None:
    """Read one pass off the velocities."""
    if stream is None or velocity is None:
        return None
    return to_denoised(stream.latents, velocity.chunk(num_passes)[index], stream.timesteps)
