"""What is given and what is to be generated: a stream's state, and the conditions that change it.

A state is a row of tokens. The first `num_target` are the clip; conditions either change these in place or
append tokens that the clip attends to and that are dropped after sampling:

    | target tokens ........................ | keyframe | reference |
      in place: first frame, mask, time region   appended

Every condition is a function from state to state, so that they compose; what they give goes into `clean`,
never into `latents`, and `denoise_mask` says how much of each token is to be generated.

Source: the token layout and the positions of appended tokens, LTX-Video (arXiv 2501.00103) and LTX-2
(arXiv 2601.03233).
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import Positions, TokenMask, Tokens, VideoLatents
from soundstage.models.transformer.attention_weights import FactoredAttentionWeights
from soundstage.models.transformer.patchify import patchify_video
from soundstage.models.transformer.positions import audio_positions, causal_intervals, video_positions

TARGET, VISIBLE = 0, 1  # groups of tokens; every group above is attended to by the target alone


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """One stream before sampling: where it starts, what is kept, where each token lies."""

    latents: Tokens  # where sampling starts, before noise: zeros, or latents to refine
    clean: Tokens  # what the kept tokens are
    denoise_mask: TokenMask
    positions: Positions
    num_target: int  # tokens of the clip itself, always the first ones
    groups: Int[Tensor, " n"]  # who sees whom, see `attention_weights`
    strengths: Float[Tensor, " n"]  # how strongly the target sees an appended token and it the target
    keyframe_mask: TokenMask | None = None  # 1 where a token holds a single picture, for checkpoints that ask
    frozen: bool = False  # the whole stream is given: never noised, never stepped

    @property
    def generated(self) -> Bool[Tensor, "b n 1"]:
        """Tokens of the clip that are sampled, at least partly."""
        in_clip = torch.arange(self.denoise_mask.shape[1], device=self.positions.device) < self.num_target
        return (self.denoise_mask > 0) & in_clip[:, None]

    @cached_property
    def attention_weights(self) -> FactoredAttentionWeights | None:
        """Weights between tokens, as factors; None when every token sees every other.

        Appended tokens that have a strength of their own form groups that see themselves and, at that
        strength, the target; all other appended tokens form one more group. Groups do not see each other.
        The order in which conditions were applied makes no difference.
        """
        if int(self.groups.max()) <= VISIBLE:
            return None
        target = (self.groups == TARGET).float()
        appended = (1 - target) * self.strengths
        members = [(self.groups == g).float() for g in sorted(set(self.groups.tolist()) - {TARGET})]
        rows = [target, appended, *members]
        columns = [target + appended, target, *members]
        return FactoredAttentionWeights(rows=torch.stack(rows)[None], columns=torch.stack(columns)[None])

    def to(self, device: torch.device) -> "StreamState":
        """Move every tensor."""
        return StreamState(
            latents=self.latents.to(device),
            clean=self.clean.to(device),
            denoise_mask=self.denoise_mask.to(device),
            positions=self.positions.to(device),
            num_target=self.num_target,
            groups=self.groups.to(device),
            strengths=self.strengths.to(device),
            keyframe_mask=None if self.keyframe_mask is None else self.keyframe_mask.to(device),
            frozen=self.frozen,
        )

    def repeated(self, count: int) -> "StreamState":
        """Stand for several clips with the same conditions; the state must be that of one."""

        def repeat(tensor: Tensor) -> Tensor:
            return tensor.expand(count, *tensor.shape[1:])

        return replace(
            self,
            latents=repeat(self.latents),
            clean=repeat(self.clean),
            denoise_mask=repeat(self.denoise_mask),
            positions=repeat(self.positions),
            keyframe_mask=None if self.keyframe_mask is None else repeat(self.keyframe_mask),
        )

    def first(self) -> "StreamState":
        """Give the state of the first of several clips."""
        return replace(
            self,
            latents=self.latents[:1],
            clean=self.clean[:1],
            denoise_mask=self.denoise_mask[:1],
            positions=self.positions[:1],
            keyframe_mask=None if self.keyframe_mask is None else self.keyframe_mask[:1],
        )

    def result(self, tokens: Tokens) -> Float[Tensor, "b target d"]:
        """Cut the clip's own tokens out of what sampling returned."""
        return tokens[:, : self.num_target]


@dataclass(frozen=True, kw_only=True)
class VideoGrid:
    """The token grid of a clip."""

    geometry: VideoGeometry
    num_latent_frames: int
    rows: int  # tokens, top to bottom
    columns: int  # tokens, left to right
    frame_rate: Fraction | float

    @classmethod
    def of(
        cls, geometry: VideoGeometry, num_frames: int, height: int, width: int, frame_rate: Fraction | float
    ) -> "VideoGrid":
        """Lay the grid over a clip of that size in pixels.

        Raises:
            RequestError: The size does not fit the grid.
        """
        frames, rows, columns = geometry.latent_shape(num_frames, height, width)
        return cls(
            geometry=geometry,
            num_latent_frames=frames,
            rows=rows // geometry.patch_size,
            columns=columns // geometry.patch_size,
            frame_rate=frame_rate,
        )

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """Tokens of the clip."""
        return self.num_latent_frames * self.tokens_per_frame

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Latent frames, height and width, in latent cells."""
        size = self.geometry.patch_size
        return self.num_latent_frames, self.rows * size, self.columns * size

    def tokens(self, latents: VideoLatents) -> Tokens:
        """Cut latents of any size into tokens, float32."""
        return patchify_video(latents.float(), self.geometry.patch_size)


def empty_video(grid: VideoGrid, batch: int = 1) -> StreamState:
    """Make the state of a clip of which nothing is given."""
    positions = video_positions(
        grid.geometry, grid.num_latent_frames, grid.rows, grid.columns, grid.frame_rate, batch
    )
    state = _empty(grid.num_tokens, grid.geometry.token_channels, positions)
    first_frame = torch.zeros_like(state.denoise_mask)
    first_frame[:, : grid.tokens_per_frame] = 1
    return replace(state, keyframe_mask=first_frame)


def empty_audio(geometry: AudioGeometry, num_tokens: int, batch: int = 1) -> StreamState:
    """Make the state of a sound of which nothing is given."""
    return _empty(num_tokens, geometry.token_channels, audio_positions(geometry, num_tokens, batch))


def start_from(state: StreamState, tokens: Tokens) -> StreamState:
    """Take the clip from given tokens: to refine them, or to keep some of them."""
    return replace(
        state,
        latents=_replace_tokens(state.latents, tokens),
        clean=_replace_tokens(state.clean, tokens),
    )


def refine_from(state: StreamState, tokens: Tokens) -> StreamState:
    """Start sampling from given tokens of the clip; what conditions keep of it stays what they say."""
    return replace(state, latents=_replace_tokens(state.latents, tokens))


def freeze(state: StreamState, tokens: Tokens) -> StreamState:
    """Give the whole stream: the network sees it clean at noise level 0, and it comes back bit for bit."""
    given = start_from(state, tokens)
    return replace(given, denoise_mask=torch.zeros_like(state.denoise_mask), frozen=True)


def replace_frames(
    state: StreamState, grid: VideoGrid, latents: VideoLatents, *, index: int = 0, strength: float = 1.0
) -> StreamState:
    """Give latent frames of the clip itself, the first from a picture for instance.

    Args:
        index: Of the first given latent frame.
        strength: 1 keeps them exactly, less lets sampling change them.

    Raises:
        RequestError: The frames do not lie in the clip, or the strength is outside [0, 1].
    """
    _check_strength(strength)
    last = index + latents.shape[2]
    if not 0 <= index < last <= grid.num_latent_frames:
        allowed = grid.num_latent_frames - latents.shape[2]
        raise RequestError(
            f"latent frames {index} to {last - 1} are outside the clip's {grid.num_latent_frames}; "
            f"the last possible start is {max(allowed, 0)}"
        )
    place = slice(index * grid.tokens_per_frame, last * grid.tokens_per_frame)
    clean, mask = state.clean.clone(), state.denoise_mask.clone()
    clean[:, place] = grid.tokens(latents)
    mask[:, place] = 1 - strength
    return replace(state, clean=clean, denoise_mask=mask)


def append_keyframe(
    state: StreamState,
    grid: VideoGrid,
    latents: VideoLatents,
    *,
    frame: int,
    num_frames: int = 1,
    strength: float = 1.0,
) -> StreamState:
    """Give a picture or a short clip that the result is to pass through at a pixel frame.

    Args:
        frame: Pixel frame at which it begins.
        num_frames: Pixel frames it holds; a single picture spans exactly its own frame.
    """
    _check_strength(strength)
    factor = grid.geometry.temporal_factor
    if num_frames == 1:
        frames = torch.tensor([[frame, frame + 1]], dtype=torch.float32)
    elif frame == 0:
        frames = causal_intervals(latents.shape[2], factor)
    else:  # not at the clip's beginning: every latent frame stands for a full set of pixel frames
        begins = torch.arange(latents.shape[2], dtype=torch.float32) * factor + frame
        frames = torch.stack([begins, begins + factor], dim=-1)
    positions = _positions(grid, latents)
    seconds = frames / float(grid.frame_rate)
    positions[:, 0] = seconds.repeat_interleave(positions.shape[2] // len(seconds), dim=0)
    return _append(state, grid.tokens(latents), positions, strength)


def append_reference(
    state: StreamState,
    grid: VideoGrid,
    latents: VideoLatents,
    *,
    strength: float = 1.0,
    downscale_factor: int = 1,
    temporal_factor: int = 1,
    attention_strength: float | Float[Tensor, " n_new"] | None = None,
) -> StreamState:
    """Give a whole clip to follow, possibly smaller and with fewer frames than the result.

    Args:
        downscale_factor: Pixels of the result per pixel of the reference; its tokens spread accordingly.
        temporal_factor: Frames of the result per frame of the reference.
        attention_strength: How strongly result and reference see each other, one number or one per token;
            None leaves attention alone.
    """
    _check_strength(strength)
    positions = _positions(grid, latents)
    positions[:, 1:] *= downscale_factor
    if temporal_factor > 1:
        shift = (temporal_factor - 1) / float(grid.frame_rate)
        positions[:, 0] = (positions[:, 0] * temporal_factor - shift).clamp(min=0)
    return _append(state, grid.tokens(latents), positions, strength, attention_strength)


def append_audio_reference(
    state: StreamState, geometry: AudioGeometry, tokens: Tokens, *, strength: float = 1.0
) -> StreamState:
    """Give a sound to follow, a voice for instance, as if it had ended one token before the clip begins."""
    _check_strength(strength)
    positions = audio_positions(geometry, tokens.shape[1], tokens.shape[0])
    gap = 1 / geometry.latents_per_second
    return _append(state, tokens.float(), positions - positions[..., -1:, 1:] - gap, strength)


def regenerate_between(state: StreamState, start: float, end: float) -> StreamState:
    """Keep the clip but for the tokens that overlap a span of time; give the clip with `start_from`.

    Args:
        start: Seconds.
        end: Seconds.

    Raises:
        RequestError: The span is empty.
    """
    if not 0 <= start < end:
        raise RequestError(f"the span {start:g}-{end:g} s is empty; its start must be before its end")
    time = state.positions[:, 0, : state.num_target]
    inside = (time[..., 1] > start) & (time[..., 0] < end)
    mask = state.denoise_mask.clone()
    mask[:, : state.num_target] = inside[..., None].float()
    return replace(state, denoise_mask=mask)


def keep_where(state: StreamState, tokens: Tokens, keep: TokenMask, *, strength: float = 1.0) -> StreamState:
    """Give the clip's tokens where `keep` is 1; fractions mix what was there with what is given."""
    _check_strength(strength)
    before = state.clean[:, : state.num_target]
    mask = state.denoise_mask.clone()
    mask[:, : state.num_target] = mask[:, : state.num_target] * (1 - keep) + (1 - strength) * keep
    clean = _replace_tokens(state.clean, torch.lerp(before, tokens.float(), keep))
    return replace(state, clean=clean, denoise_mask=mask)


def _empty(num_tokens: int, channels: int, positions: Positions) -> StreamState:
    zeros = torch.zeros(positions.shape[0], num_tokens, channels)
    return StreamState(
        latents=zeros,
        clean=zeros,
        denoise_mask=torch.ones(positions.shape[0], num_tokens, 1),
        positions=positions,
        num_target=num_tokens,
        groups=torch.full((num_tokens,), TARGET),
        strengths=torch.ones(num_tokens),
    )


def _positions(grid: VideoGrid, latents: VideoLatents) -> Positions:
    batch, _, frames, height, width = latents.shape
    size = grid.geometry.patch_size
    return video_positions(grid.geometry, frames, height // size, width // size, grid.frame_rate, batch)


def _append(
    state: StreamState,
    tokens: Tokens,
    positions: Positions,
    strength: float,
    attention_strength: float | Tensor | None = None,
) -> StreamState:
    """Add given tokens behind the others; sampling starts them from zeros."""
    count = tokens.shape[1]
    isolated = attention_strength is not None
    group = max(int(state.groups.max()), VISIBLE) + 1 if isolated else VISIBLE
    strengths = torch.as_tensor(1.0 if attention_strength is None else attention_strength).expand(count)
    if strengths.min() < 0 or strengths.max() > 1:
        raise RequestError(f"attention_strength={attention_strength} is outside [0, 1]")
    marker = None
    if state.keyframe_mask is not None:
        marker = torch.cat([state.keyframe_mask, torch.zeros_like(tokens[..., :1])], dim=1)
    return replace(
        state,
        latents=torch.cat([state.latents, torch.zeros_like(tokens)], dim=1),
        clean=torch.cat([state.clean, tokens], dim=1),
        denoise_mask=torch.cat([state.denoise_mask, torch.full_like(tokens[..., :1], 1 - strength)], dim=1),
        positions=torch.cat([state.positions, positions], dim=2),
        groups=torch.cat([state.groups, torch.full((count,), group)]),
        strengths=torch.cat([state.strengths, strengths]),
        keyframe_mask=marker,
    )


def _replace_tokens(before: Tokens, tokens: Tensor) -> Tokens:
    """Put tokens in the place of the first ones."""
    return torch.cat([tokens.to(before), before[:, tokens.shape[1] :]], dim=1)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise RequestError(f"strength={strength} is outside [0, 1]; 1 keeps what is given, 0 ignores it")
