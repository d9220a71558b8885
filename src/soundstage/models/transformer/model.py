"""The audio-video diffusion transformer of LTX-2: noisy tokens of two streams in, their velocities out.

    video tokens -> project in -> +-----------------+ -> norm, modulate, project out -> video velocity
                                  | 48 x two-stream |
    audio tokens -> project in -> |      block      | -> norm, modulate, project out -> audio velocity
                                  +-----------------+
    noise levels -> adaLN-single ----^     ^---- text features (2.0: projected here; later: by the connectors)

Source: LTX-2, arXiv 2601.03233.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.errors import RequestError
from soundstage.core.types import AV, Context, ContextMask
from soundstage.models.transformer.attention_weights import FactoredBias, weights_to_bias
from soundstage.models.transformer.block import StreamConditioning, TransformerBlock, Watch
from soundstage.models.transformer.config import STREAMS, Stream, StreamConfig, TransformerConfig
from soundstage.models.transformer.flops import forward_flops
from soundstage.models.transformer.inputs import (
    AudioPositions,
    BlockSkips,
    Perturbation,
    StreamInput,
    TokenPositions,
)
from soundstage.models.transformer.modulation import AdaLNSingle, Modulation, NoiseLevels, modulate, new_table
from soundstage.models.transformer.ropes import StreamRope, stream_rope


class CaptionProjection(nn.Module):
    """Bring text features to a stream's width (2.0 only; later connectors do it)."""

    def __init__(self, caption_channels: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, context: Context) -> Float[Tensor, "b s width"]:
        """Project."""
        out: Tensor = self.linear_2(F.gelu(self.linear_1(context), approximate="tanh"))
        return out


class OuterLayers(NamedTuple):
    """One stream's layers around the blocks, by role instead of by official name."""

    project_in: nn.Linear
    adaln: AdaLNSingle
    context_adaln: AdaLNSingle | None
    project_context: CaptionProjection | None
    table: Tensor
    project_out: nn.Linear
    cross_adaln: AdaLNSingle | None
    cross_gate_adaln: AdaLNSingle | None


class AVTransformer(nn.Module):
    """Predict the velocity (noise minus clean) of video and audio tokens together.

    Attributes bear the official names, so that a state dict loads as it is. A new network outputs zeros: its
    adaLN rows, tables and output projections start at zero.

    Args:
        streams: What to build; one stream alone comes without the attention between them.
    """

    patchify_proj: nn.Linear
    adaln_single: AdaLNSingle
    scale_shift_table: nn.Parameter
    proj_out: nn.Linear
    audio_patchify_proj: nn.Linear
    audio_adaln_single: AdaLNSingle
    audio_scale_shift_table: nn.Parameter
    audio_proj_out: nn.Linear

    def __init__(self, config: TransformerConfig, streams: Sequence[Stream] = STREAMS) -> None:
        super().__init__()
        self.config = config
        self.streams = tuple(streams)
        video, audio = config.video, config.audio
        rows, captions = config.modulation_rows, config.caption_channels
        both = "video" in streams and "audio" in streams

        def adaln(dim: int, num_rows: int, wanted: bool = True) -> AdaLNSingle | None:
            return AdaLNSingle(dim, num_rows) if wanted else None

        if "video" in streams:
            self.patchify_proj = nn.Linear(video.in_channels, video.dim)
            self.adaln_single = AdaLNSingle(video.dim, rows)
            self.scale_shift_table = new_table(2, video.dim)
            self.proj_out = _new_output(video)
            self.prompt_adaln_single = adaln(video.dim, 2, config.prompt_adaln)
            self.caption_projection = CaptionProjection(captions, video.dim) if captions else None
            self.av_ca_video_scale_shift_adaln_single = adaln(video.dim, 4, both)
            self.av_ca_a2v_gate_adaln_single = adaln(video.dim, 1, both)
            if config.keyframe_embedding:
                self.keyframes_abs_pos_embedding = new_table(1, video.dim)
        if "audio" in streams:
            self.audio_patchify_proj = nn.Linear(audio.in_channels, audio.dim)
            self.audio_adaln_single = AdaLNSingle(audio.dim, rows)
            self.audio_scale_shift_table = new_table(2, audio.dim)
            self.audio_proj_out = _new_output(audio)
            self.audio_prompt_adaln_single = adaln(audio.dim, 2, config.prompt_adaln)
            self.audio_caption_projection = CaptionProjection(captions, audio.dim) if captions else None
            self.av_ca_audio_scale_shift_adaln_single = adaln(audio.dim, 4, both)
            self.av_ca_v2a_gate_adaln_single = adaln(audio.dim, 1, both)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(config, streams) for _ in range(config.num_layers)
        )

    def layers(self, stream: Stream) -> OuterLayers:
        """Pick one stream's layers around the blocks."""
        if stream == "video":
            return OuterLayers(
                self.patchify_proj,
                self.adaln_single,
                self.prompt_adaln_single,
                self.caption_projection,
                self.scale_shift_table,
                self.proj_out,
                self.av_ca_video_scale_shift_adaln_single,
                self.av_ca_a2v_gate_adaln_single,
            )
        return OuterLayers(
            self.audio_patchify_proj,
            self.audio_adaln_single,
            self.audio_prompt_adaln_single,
            self.audio_caption_projection,
            self.audio_scale_shift_table,
            self.audio_proj_out,
            self.av_ca_audio_scale_shift_adaln_single,
            self.av_ca_v2a_gate_adaln_single,
        )

    def forward(
        self,
        video: StreamInput | None = None,
        audio: StreamInput | None = None,
        perturbations: Sequence[Perturbation] | None = None,
        ropes: AV[StreamRope] | None = None,
        watch: Callable[[int], Watch] | None = None,
    ) -> AV[Tensor]:
        """Predict velocities, in the dtype of the latents.

        Args:
            perturbations: One per batch item.
            ropes: Tables kept from `prepare`; they are made anew when absent.
            watch: Gives for a block's index what is shown its calls of the attention between the streams.

        Raises:
            RequestError: A stream is given that was not built, or a perturbation does not fit.
        """
        given = {name: s for name, s in zip(STREAMS, (video, audio), strict=True) if s is not None}
        self._check(given, perturbations)
        if ropes is None:
            ropes = self.prepare(**{name: stream.positions for name, stream in given.items()})

        tokens = {name: self.project_in(name, stream) for name, stream in given.items()}
        conditioning = {name: self.condition(name, given, ropes) for name in given}
        for index, block in enumerate(self.transformer_blocks):
            skips = BlockSkips.of(perturbations, index, next(iter(tokens.values())).device)
            tokens = block(tokens, conditioning, skips, None if watch is None else watch(index))
        velocities = {name: self.project_out(name, x, conditioning[name]) for name, x in tokens.items()}

        return AV(**{name: velocity.to(given[name].latents.dtype) for name, velocity in velocities.items()})

    def prepare(
        self, video: TokenPositions | None = None, audio: AudioPositions | None = None
    ) -> AV[StreamRope]:
        """Tabulate the rotations of a run from its positions, once for all steps and guidance passes."""
        return AV(
            None if video is None else stream_rope(self.config, "video", video),
            None if audio is None else stream_rope(self.config, "audio", audio),
        )

    def project_in(self, name: Stream, stream: StreamInput) -> Tensor:
        """Bring tokens to the stream's width; from 2.5 on, mark keyframes.

        Raises:
            RequestError: Keyframes are to be marked and the mask is missing.
        """
        project = self.layers(name).project_in
        x: Tensor = project(stream.latents.to(project.weight.dtype))
        if name == "video" and self.config.keyframe_embedding:
            if stream.keyframe_mask is None:
                raise RequestError("this checkpoint marks keyframes: StreamInput.keyframe_mask is missing")
            x = x + (stream.keyframe_mask > 0) * self.keyframes_abs_pos_embedding.to(x.dtype)
        return x

    def condition(
        self, name: Stream, given: Mapping[Stream, StreamInput], ropes: AV[StreamRope]
    ) -> StreamConditioning:
        """Prepare what steers a stream: noise levels, text, positions and the other stream's level."""
        config, layers, stream = self.config, self.layers(name), given[name]
        other = next((given[o] for o in given if o != name), None)
        rope = ropes.video if name == "video" else ropes.audio
        assert rope is not None
        dtype = layers.project_in.weight.dtype
        scale, gate_scale = config.timestep_scale, config.gate_timestep_scale

        levels = NoiseLevels.of_tokens(stream.timesteps)
        modulation, embedded = layers.adaln(levels, scale, dtype)
        context, negative = stream.context.to(dtype), stream.negative_text
        away = None if negative is None else negative.context.to(dtype)
        if layers.project_context is not None:
            context = layers.project_context(context)
            away = None if away is None else layers.project_context(away)
        context_modulation = cross_modulation = cross_gate = None
        if layers.context_adaln is not None:
            context_modulation, _ = layers.context_adaln(NoiseLevels.of_items(stream.sigma), scale, dtype)
        elif config.text_modulation:  # by the blocks' tables alone
            context_modulation = Modulation(context.new_zeros(1, 2, context.shape[-1]), None)
        if other is not None and layers.cross_adaln is not None and layers.cross_gate_adaln is not None:
            cross_modulation, _ = layers.cross_adaln(levels, scale, dtype)
            cross_gate, _ = layers.cross_gate_adaln(NoiseLevels.of_items(other.sigma), gate_scale, dtype)
        return StreamConditioning(
            modulation=modulation,
            output_modulation=embedded,
            rope=rope.own,
            context=context,
            context_bias=_context_bias(stream, dtype),
            negative_text=None if negative is None or away is None else replace(negative, context=away),
            context_modulation=context_modulation,
            attention_bias=weights_to_bias(stream.attention_weights, dtype),
            enabled=stream.enabled,
            cross_rope=rope.cross,
            cross_modulation=cross_modulation,
            cross_gate=cross_gate,
        )

    def project_out(self, name: Stream, x: Tensor, given: StreamConditioning) -> Tensor:
        """Norm, modulate by the embedded noise level and project to velocities."""
        layers = self.layers(name)
        shift, scale = given.output_modulation.rows(layers.table)
        normed = F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        velocity: Tensor = layers.project_out(modulate(normed, scale=scale, shift=shift))
        return velocity

    def parameter_counts(self) -> dict[str, int]:
        """Count parameters per stream; "cross" is everything that joins the two."""
        counts = {"video": 0, "audio": 0, "cross": 0}
        for name, parameter in self.named_parameters():
            cross = (
                "audio_to_video" in name or "video_to_audio" in name or "av_ca" in name or "a2v_ca" in name
            )
            counts["cross" if cross else "audio" if "audio_" in name else "video"] += parameter.numel()
        return counts

    def flops(self, num_video_tokens: int, num_audio_tokens: int, num_text_tokens: int) -> int:
        """Count the floating-point operations of one forward of one item, two per multiply-add.

        Norms, gates, modulation and the layers around the blocks are left out: below 0.1 % at real sizes.
        """
        has = {name: name in self.streams for name in STREAMS}
        count = forward_flops(
            self.config,
            num_video_tokens=num_video_tokens if has["video"] else 0,
            num_audio_tokens=num_audio_tokens if has["audio"] else 0,
            num_text_tokens=num_text_tokens,
        )
        return count.in_blocks

    def _check(
        self, given: Mapping[Stream, StreamInput], perturbations: Sequence[Perturbation] | None
    ) -> None:
        if not given:
            raise RequestError("no stream is given; the transformer needs video, audio or both")
        for name, stream in given.items():
            if name not in self.streams:
                raise RequestError(
                    f"{name} tokens are given to a transformer built for {self.streams[0]} only"
                )
            if perturbations and len(perturbations) != len(stream.latents):
                raise RequestError(
                    f"{len(perturbations)} perturbations are given for {len(stream.latents)} batch items"
                )
        for perturbation in perturbations or ():
            perturbation.check(self.config.num_layers)


def _context_bias(stream: StreamInput, dtype: torch.dtype) -> Float[Tensor, "b 1 1 s"] | FactoredBias | None:
    """Say which words tokens may read: by a mask for all of them, or by weights for each."""
    if stream.context_weights is None:
        return _mask_to_bias(stream.context_mask, dtype)
    if stream.context_mask is not None:
        raise RequestError("context_mask and context_weights both say which words are read; give one")
    return FactoredBias(stream.context_weights, dtype)


def _mask_to_bias(mask: ContextMask | None, dtype: torch.dtype) -> Float[Tensor, "b 1 1 s"] | None:
    """Turn a text mask into what attention adds to its scores."""
    if mask is None:
        return None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None]


def _new_output(stream: StreamConfig) -> nn.Linear:
    """Make an output projection that starts at zero."""
    linear = nn.Linear(stream.dim, stream.out_channels)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
