"""A stretch of a clip of which some is given and some is to be made, in both streams.

Where nothing is given the stretch holds the nearest frame and silence. It is encoded as a whole; a token is
generated if any of what it stands for is to be made.

    frames   given given given | made made made made made | given given
    latents      kept    |        generated      |  generated  | kept
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from soundstage.core.geometry import VideoGeometry, num_audio_samples
from soundstage.core.types import TokenMask, Tokens
from soundstage.media.placement import resize_frames
from soundstage.media.video import ClipPixels, Frames, to_pixels
from soundstage.pipelines.conditions import (
    StreamState,
    append_keyframe,
    empty_audio,
    empty_video,
    freeze,
    start_from,
)
from soundstage.pipelines.modes.mode import Setting
from soundstage.pipelines.modes.pictures import extend_to, hold_last, scaled
from soundstage.pipelines.modes.sounds import Stereo

FEATHER = 8  # frames over which a retake fades in and out, inside of what was made
_SLACK = 1e-4  # seconds that float32 positions may be off

Span = tuple[float, float]  # seconds
MadeFrames = Bool[Tensor, " f"]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What the model works on."""

    frames: Frames  # at the size that will be shown
    made: MadeFrames  # which of them are to be generated
    frame_rate: Fraction
    waveform: Stereo | None  # None: the clip is silent and stays so
    sample_rate: int  # Hz
    made_sound: tuple[Span, ...] = ()  # what of the sound is to be generated

    def video_state(self, setting: Setting) -> StreamState:
        """Give the frames and keep what is not to be made; all kept, the stream is frozen."""
        frames = hold_last(resize_frames(self.frames, setting.size), setting.canvas.padded_frames)
        padded = extend_to(frames, setting.padded_size)
        empty = empty_video(setting.grid)
        tokens = setting.grid.tokens(setting.encoders.video(padded))
        if not self.made.any():
            return freeze(empty, tokens)
        made = self.made[torch.arange(len(frames)).clamp(max=len(self.made) - 1)]
        latent = made_latents(made, setting.grid.geometry)
        mask = latent.float().repeat_interleave(setting.grid.tokens_per_frame)[None, :, None]
        state = replace(start_from(empty, tokens), denoise_mask=mask)
        for frame in borders(made, latent, setting.grid.geometry):
            latents = setting.encoders.video(padded[frame : frame + 1])
            state = append_keyframe(state, setting.grid, latents, frame=frame)
        return state

    def sound_state(self, setting: Setting) -> StreamState:
        """Give the sound and keep what is not to be made; all kept, the stream is frozen."""
        empty = empty_audio(setting.audio_geometry, setting.num_audio_tokens)
        waveform = torch.zeros(2, 1) if self.waveform is None else self.waveform
        tokens = setting.encoders.audio_tokens(waveform, self.sample_rate, setting.num_audio_tokens)
        if not self.made_sound or self.waveform is None:
            return freeze(empty, tokens)
        mask = torch.stack([overlapping(empty, span) for span in self.made_sound]).amax(0)
        return replace(start_from(empty, tokens), denoise_mask=mask)

    def merge(self, made: ClipPixels, *, feather: int = 0) -> Float[Tensor, "3 f height width"]:
        """Put what was made where it belongs; given frames come back bit for bit.

        Args:
            feather: Frames over which it fades into what was there before; they lie inside the made part.
        """
        given = to_pixels(self.frames)
        size = (self.frames.shape[1], self.frames.shape[2])
        weight = fade_weights(self.made, feather)[:, None, None]
        return torch.where(weight > 0, torch.lerp(given, scaled(made, size), weight), given)


def keep_sound_until(state: StreamState, tokens: Tokens, seconds: float) -> StreamState:
    """Give a sound as the beginning of a longer one; whole tokens of it are kept."""
    made = overlapping(state, (seconds, float("inf")))
    return replace(start_from(state, tokens), denoise_mask=made)


def overlapping(state: StreamState, span: Span) -> TokenMask:
    """Mark the tokens that overlap a span of time."""
    time = state.positions[:, 0, : state.num_target]
    inside = (time[..., 1] > span[0] + _SLACK) & (time[..., 0] < span[1] - _SLACK)
    return inside[..., None].float()


def made_latents(made: MadeFrames, geometry: VideoGeometry) -> Bool[Tensor, " latents"]:
    """Mark the latent frames of which any pixel frame is to be made."""
    rest = made[1:].view(-1, geometry.temporal_factor).any(dim=1)
    return torch.cat([made[:1], rest])


def borders(made: MadeFrames, latent: Bool[Tensor, " latents"], geometry: VideoGeometry) -> list[int]:
    """Find the given frames beside made ones that no kept latent frame holds; keyframes are to hold them."""
    factor = geometry.temporal_factor
    index = torch.arange(len(made))
    lost = latent[(index + factor - 1) // factor] & ~made
    beside = torch.zeros_like(made)
    beside[1:] |= made[:-1]
    beside[:-1] |= made[1:]
    found: list[int] = (lost & beside).nonzero()[:, 0].tolist()
    return found


def fade_weights(made: MadeFrames, feather: int) -> Float[Tensor, " f"]:
    """Weigh what was made: 0 on given frames, 1 on made ones, rising and falling inside the made part."""
    weights = made.float()
    edges = torch.diff(made.int(), prepend=made[:1].int() * 0, append=made[:1].int() * 0)
    begins, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    for begin, end in zip(begins, ends, strict=True):
        length = min(feather, (end - begin) // 4)
        ramp = (torch.arange(length) + 1) / (length + 1)
        if begin > 0:
            weights[begin : begin + length] = ramp
        if end < len(made):
            weights[end - length : end] = ramp.flip(0)
    return weights


def samples_at(frame: int, frame_rate: Fraction, sample_rate: int) -> int:
    """Return the sample at which a frame begins."""
    return num_audio_samples(frame, frame_rate, sample_rate)
