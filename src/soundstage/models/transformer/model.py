"""The audio-video diffusion transformer of LTX-2: noisy tokens of two streams in, their velocities out.

    video tokens -> project in -> +-----------------+ -> norm, modulate, project out -> video velocity
                                  | 48 x two-stream |
    audio tokens -> project in -> |      block      | -> norm, modulate, project out -> audio velocity
                                  +-----------------+
    noise levels -> adaLN-single ----^     ^---- text features (2.0: projected here; later: by the connectors)

Source: LTX-2, arXiv 2601.03233.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from soundstage.core.errors import RequestError
from soundstage.core.types import AV, Context
from soundstage.models.transformer.attention_weights import weights_to_bias
from soundstage.models.transformer.block import Pending, TransformerBlock, Watch
from soundstage.models.transformer.conditioning import StreamConditioning, condition_text
from soundstage.models.transformer.config import STREAMS, Stream, StreamConfig, TransformerConfig
from soundstage.models.transformer.detail import DetailHead
from soundstage.models.transformer.flops import forward_flops
from soundstage.models.transformer.inputs import (
    AudioPositions,
    BlockSkips,
    Branch,
    Passes,
    Perturbation,
    StreamInput,
    TokenPositions,
    texts_of,
)
from soundstage.models.transformer.kept import Kept
from soundstage.models.transformer.modulation import AdaLNSingle, Modulation, NoiseLevels, modulate, new_table
from soundstage.models.transformer.picking import of_items, take
from soundstage.models.transformer.ropes import OCTAVES, StreamRope, stream_rope
from soundstage.models.transformer.rows import Rows
from soundstage.models.transformer.tables import add_tables
from soundstage.nn.linear import project

LEAST_SIGMA = 0.05  # below it a predicted clean token is taken as if at this level


class CaptionProjection(nn.Module):
    """Bring text features to a stream's width (2.0 only; later connectors do it)."""

    def __init__(self, caption_channels: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, context: Context) -> Float[Tensor, "b s width"]:
        """Project."""
        return project(self.linear_2, project(self.linear_1, context, "gelu_tanh"))


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
            self.input_gate = _new_output(video) if config.prediction == "clean" else None
            self.position_proj = _new_position_layer(video) if config.absolute_positions else None
            self.detail_head = _new_detail_head(video, config.detail_width)
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
            self.audio_input_gate = _new_output(audio) if config.prediction == "clean" else None
            self.audio_position_proj = _new_position_layer(audio) if config.absolute_positions else None
            self.audio_detail_head = _new_detail_head(audio, config.detail_width)
            self.audio_prompt_adaln_single = adaln(audio.dim, 2, config.prompt_adaln)
            self.audio_caption_projection = CaptionProjection(captions, audio.dim) if captions else None
            self.av_ca_audio_scale_shift_adaln_single = adaln(audio.dim, 4, both)
            self.av_ca_v2a_gate_adaln_single = adaln(audio.dim, 1, both)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(config, streams) for _ in range(config.num_layers)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokens inside."""
        return self.layers(self.streams[0]).project_in.weight.dtype

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
        passes: Passes | None = None,
    ) -> AV[Tensor]:
        """Predict velocities, in the dtype of the latents.

        Args:
            perturbations: One per batch item.
            ropes: Tables kept from `prepare`; they are made anew when absent.
            watch: Gives for a block's index what is shown the first item's calls of the attention between
                the streams.
            passes: Several predictions for the same tokens, in place of `perturbations`; the velocities come
                one pass behind the other in the batch.

        Raises:
            RequestError: A stream is given that was not built, or a perturbation does not fit.
        """
        given = {name: s for name, s in zip(STREAMS, (video, audio), strict=True) if s is not None}
        branches = _branches(given, perturbations, passes)
        self._check(given, perturbations, branches)
        if ropes is None:
            ropes = self.prepare(**{name: stream.positions for name, stream in given.items()})

        num_items = len(next(iter(given.values())).latents)
        rows = Rows.of_items(num_items)
        if passes is not None:
            rows = Rows.shared(num_items, len(branches), passes.rows_at_once)
        tokens = {n: self.project_in(n, stream, getattr(ropes, n)) for n, stream in given.items()}
        pending = Pending(tokens, rows)
        run = Passes(branches=(), kept=None) if passes is None else passes
        conditioning = {name: self.condition(name, given, ropes, branches, run.kept) for name in given}
        if (cache := run.cache) is not None:
            cache.begin(pending.tokens)
        for index, block in enumerate(self.transformer_blocks):
            if index == 1 and cache is not None:
                pending = Pending(*cache.look(pending.tokens, pending.rows, branches))
            if not pending.rows.rows:
                break
            skips = [BlockSkips.of(branch.perturbation, index) for branch in branches]
            pending = block(
                pending, conditioning, skips, None if watch is None else (run.watched, watch(index))
            )
        if cache is not None:
            pending = Pending(*cache.complete(pending.tokens, pending.rows, branches))
        velocities = {
            name: self.project_out(name, x, given[name], conditioning[name], pending.rows)
            for name, x in pending.tokens.items()
        }
        if passes is not None:  # from the rows that are left to those that stand for the passes
            order = [row for number in range(len(branches)) for row in pending.rows.of_pass(number)]
            velocities = {name: take(velocity, order) for name, velocity in velocities.items()}
        if self.config.prediction == "clean":
            velocities = {
                name: self.velocity_of(name, clean, given[name], conditioning[name])
                for name, clean in velocities.items()
            }
        return AV(**{name: velocity.to(given[name].latents.dtype) for name, velocity in velocities.items()})

    def join_projections(self) -> None:
        """Lay projections of the same tokens side by side, for fewer and larger products.

        Names and values of the weights stay as they are. To be called once the weights are where they are to
        stay; what is moved, quantised or adapted later is simply computed one by one.
        """
        for block in self.transformer_blocks:
            assert isinstance(block, TransformerBlock)
            block.join_projections()

    def prepare(
        self, video: TokenPositions | None = None, audio: AudioPositions | None = None
    ) -> AV[StreamRope]:
        """Tabulate what a run's positions say, once for all steps and guidance passes."""
        return AV(
            None if video is None else stream_rope(self.config, "video", video),
            None if audio is None else stream_rope(self.config, "audio", audio),
        )

    def project_in(self, name: Stream, stream: StreamInput, tables: StreamRope | None = None) -> Tensor:
        """Bring tokens to the stream's width; from 2.5 on mark keyframes; say where they are, if configured.

        Args:
            tables: From `prepare`; made anew when absent.

        Raises:
            RequestError: Keyframes are to be marked and the mask is missing.
        """
        layer = self.layers(name).project_in
        x = project(layer, stream.latents.to(layer.weight.dtype))
        if name == "video" and self.config.keyframe_embedding:
            if stream.keyframe_mask is None:
                raise RequestError("this checkpoint marks keyframes: StreamInput.keyframe_mask is missing")
            x = x + (stream.keyframe_mask > 0) * self.keyframes_abs_pos_embedding.to(x.dtype)
        where = self.position_proj if name == "video" else self.audio_position_proj
        if where is not None:
            if tables is None or tables.waves is None:
                tables = stream_rope(self.config, name, stream.positions)
            assert tables.waves is not None
            x = x + where(tables.waves.to(x.dtype))
        return x

    def condition(
        self,
        name: Stream,
        given: Mapping[Stream, StreamInput],
        ropes: AV[StreamRope],
        branches: Sequence[Branch] = (Branch(),),
        kept: Kept | None = None,
    ) -> StreamConditioning:
        """Prepare what steers a stream: noise levels, texts, positions and the other stream's level."""
        config, layers, stream = self.config, self.layers(name), given[name]
        other = next((given[o] for o in given if o != name), None)
        rope = ropes.video if name == "video" else ropes.audio
        assert rope is not None
        scale, gate_scale, dtype = config.timestep_scale, config.gate_timestep_scale, self.dtype

        levels = NoiseLevels.of_tokens(stream.timesteps) if stream.levels is None else stream.levels
        modulation, embedded = layers.adaln(levels, scale, dtype)
        context_modulation = cross_modulation = cross_gate = None
        if layers.context_adaln is not None:
            context_modulation, _ = layers.context_adaln(NoiseLevels.of_items(stream.sigma), scale, dtype)
        elif config.text_modulation:  # by the blocks' tables alone
            width = (config.video if name == "video" else config.audio).dim
            context_modulation = Modulation(modulation.values.new_zeros(1, 2, width), None)
        if other is not None and layers.cross_adaln is not None and layers.cross_gate_adaln is not None:
            cross_modulation, _ = layers.cross_adaln(levels, scale, dtype)
            cross_gate, _ = layers.cross_gate_adaln(NoiseLevels.of_items(other.sigma), gate_scale, dtype)
        texts, text_of = texts_of(name, stream, branches)
        conditioning = StreamConditioning(
            modulation=modulation,
            output_modulation=embedded,
            rope=rope.own,
            texts=[
                condition_text(
                    text,
                    layers.project_context,
                    context_modulation,
                    dtype,
                    kept,
                    constant=layers.context_adaln is None,
                )
                for text in texts
            ],
            text_of=text_of,
            attention_bias=weights_to_bias(stream.attention_weights, dtype),
            enabled=stream.enabled,
            cross_rope=rope.cross,
            cross_modulation=cross_modulation,
            cross_gate=cross_gate,
        )
        return add_tables(self.transformer_blocks, name, conditioning)

    def project_out(
        self, name: Stream, x: Tensor, stream: StreamInput, given: StreamConditioning, rows: Rows
    ) -> Tensor:
        """Norm, modulate by the embedded noise level and project to velocities; add detail, if configured."""
        layers = self.layers(name)
        detail_of = self.detail_head if name == "video" else self.audio_detail_head
        modulation = given.output_modulation.plus(layers.table)
        velocities = []
        for part in rows.all():
            shift, scale = modulation.spread(items=part.items)
            normed = F.layer_norm(take(x, part.rows), x.shape[-1:], eps=self.config.norm_eps)
            state = modulate(normed, scale=scale, shift=shift)
            velocity = project(layers.project_out, state)
            if detail_of is not None:
                velocity = velocity + detail_of(state, of_items(stream.latents, part.items))
            velocities.append(velocity)
        return velocities[0] if len(velocities) == 1 else torch.cat(velocities)

    def velocity_of(
        self, name: Stream, clean: Tensor, stream: StreamInput, given: StreamConditioning
    ) -> Tensor:
        """Turn predicted clean tokens into velocities; below `LEAST_SIGMA` a level counts as that.

        A token has more features than a clip has degrees of freedom. A narrow network can name the clean one,
        but cannot carry all of the noise through itself, which the velocity asks for. What is too fine for it
        to name, it takes from the noisy token: a gate per feature learns how far to trust it at each level.

        Args:
            clean: Of every item, or of all items once per pass, one pass behind the other.

        Source: Li & He 2025, "Back to basics: let denoising generative models denoise", arXiv 2511.13720; the
        gate is ours, see docs/experiments.md.
        """
        gate_of = self.input_gate if name == "video" else self.audio_input_gate
        assert gate_of is not None
        lookup = given.output_modulation.lookup
        gate: Tensor = gate_of(F.silu(given.output_modulation.values))  # (levels, 1, features)
        gate = gate if lookup is None else gate[lookup.row_of, 0]
        latents = stream.latents.to(clean.dtype)
        level = stream.timesteps[..., None].clamp(min=LEAST_SIGMA).to(clean.dtype)
        by_pass = clean.view(-1, *latents.shape)
        return ((latents - torch.addcmul(by_pass, gate, latents)) / level).flatten(0, 1)

    def parameter_counts(self) -> dict[str, int]:
        """Count parameters per stream; "cross" is everything that joins the two."""
        counts = {"video": 0, "audio": 0, "cross": 0}
        for name, parameter in self.named_parameters():
            cross = any(mark in name for mark in ("audio_to_video", "video_to_audio", "av_ca", "a2v_ca"))
            counts["cross" if cross else "audio" if "audio_" in name else "video"] += parameter.numel()
        return counts

    def kept_bytes(self, num_texts: int, num_text_tokens: int) -> int:
        """Count the bytes that a run keeps of its texts."""
        per_token = self.config.kept_per_text_token(self.streams)
        return num_texts * num_text_tokens * per_token * self.dtype.itemsize

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
        self,
        given: Mapping[Stream, StreamInput],
        perturbations: Sequence[Perturbation] | None,
        branches: Sequence[Branch],
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
        for branch in branches:
            branch.perturbation.check(self.config.num_layers)


def _branches(
    given: Mapping[Stream, StreamInput],
    perturbations: Sequence[Perturbation] | None,
    passes: Passes | None,
) -> Sequence[Branch]:
    """Return what is done to every pass, or without passes to every batch item."""
    if passes is None:
        num_items = max((len(stream.latents) for stream in given.values()), default=0)
        return [Branch(perturbation=p) for p in perturbations or [Perturbation()] * num_items]
    if perturbations:
        raise RequestError("perturbations and passes both say what is left out; give one")
    return passes.branches


def _new_position_layer(stream: StreamConfig) -> nn.Linear:
    """Make the projection of absolute positions; it starts at zero."""
    linear = nn.Linear(2 * len(stream.max_pos) * OCTAVES, stream.dim, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def _new_detail_head(stream: StreamConfig, inner: int) -> DetailHead | None:
    return DetailHead(stream.dim, stream.in_channels, inner) if inner else None


def _new_output(stream: StreamConfig) -> nn.Linear:
    """Make an output projection that starts at zero."""
    linear = nn.Linear(stream.dim, stream.out_channels)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
