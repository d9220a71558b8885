"""Long clips: what one window hands over to the next, and how the windows become one clip again.

A window keeps the last latents of the one before, bit for bit, at the beginning of both of its streams, and
generates the rest with them in view. A causal VAE's first video latent holds a single frame, so the first of
the kept ones is that frame, encoded; the first audio token, 10 ms of sound, is generated.

    window 0   |1|  8  |  8  |  8  |  8  |  8  |  8  |       frames per video latent
                                   =     =     =             the same latents
    window 1                 |1|  8  |  8  |  8  |  8  | ...

Both windows decode what they share. The picture passes from one to the other over the middle half of it, the
sound within 50 ms at its middle, at equal power. No more than a window is ever held.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry
from soundstage.core.rng import named_seed
from soundstage.core.types import AV, VideoLatents
from soundstage.models.transformer.patchify import patchify_audio
from soundstage.models.video_vae.model import VideoVAE
from soundstage.pipelines.canvas import Canvas, Windows
from soundstage.pipelines.conditions import StreamState, keep_where, replace_frames
from soundstage.pipelines.generation import fit_sound
from soundstage.pipelines.plan import Stage
from soundstage.runtime.layout import lay_out
from soundstage.runtime.residency import bring

CROSSFADE = 0.05  # seconds

Sound = Float[Tensor, "ch samples"]


class Part(NamedTuple):
    """The next piece of a clip."""

    pixels: Float[Tensor, "3 f h w"]  # RGB in [-1, 1], float32, CPU
    waveform: Float[Tensor, "2 samples"]  # [-1, 1], float32, CPU; not cut where the frames are


class Made(NamedTuple):
    """What a window adds to a clip; a stream that is given is None."""

    pixels: Float[Tensor, "3 f h w"] | None
    waveform: Float[Tensor, "2 samples"] | None


class Handover(NamedTuple):
    """What a window of one stage takes over: the first latents of its picture and its sound."""

    video: VideoLatents | None  # None: the picture is given, or there is none
    audio: Float[Tensor, "b c t m"] | None  # from the second token on; None: there is no sound


def window_seed(seed: int, index: int) -> int:
    """Return the seed of a window; the first has that of the clip, so it is the clip that fits one window."""
    return seed if index == 0 else named_seed(seed, f"window.{index}")


def hand_over(
    latents: AV[Tensor],
    pixels: Float[Tensor, "3 f h w"] | None,
    stage: Stage,
    windows: Windows,
    vae: VideoVAE | None,
    audio: AudioGeometry,
) -> Handover:
    """Take from a finished window what the next one begins with.

    Args:
        latents: Of that stage, normalised.
        pixels: The window, decoded, before it is cut to the size asked for; None where none was made.
    """
    tokens = round(windows.advance / Fraction(stage.grid.frame_rate) * Fraction(audio.latents_per_second))
    sound = None if latents.audio is None else latents.audio[:, :, tokens + 1 :]
    if pixels is None:
        return Handover(None, sound)
    assert latents.video is not None
    if vae is None or vae.encoder is None:
        raise RequestError("long clips need the encoder of the video VAE, which this file lacks")
    geometry = stage.grid.geometry
    _, rows, columns = stage.grid.latent_shape
    size = (rows * geometry.spatial_factor, columns * geometry.spatial_factor)
    frame = pixels[None, :, windows.advance].to(latents.video)
    if frame.shape[2:] != size:
        frame = F.interpolate(frame, size, mode="bicubic", antialias=True, align_corners=False)
    bring(vae)
    weight = next(vae.parameters())
    lay_out(vae, weight.device)
    first = vae.encode(frame[:, :, None].clamp(-1, 1).to(weight)).to(latents.video)
    shift = windows.advance // geometry.temporal_factor
    kept = latents.video[:, :, shift + 1 :]
    return Handover(torch.cat([first, kept], dim=2), sound)


def take_over(streams: AV[StreamState], stage: Stage, given: Handover) -> AV[StreamState]:
    """Begin a window with what the one before handed over."""
    video, audio = streams.video, streams.audio
    if video is not None and not video.frozen:
        assert given.video is not None
        video = replace_frames(video, stage.grid, given.video.to(video.clean))
    if audio is not None and not audio.frozen:
        assert given.audio is not None
        audio = _keep_tokens(audio, patchify_audio(given.audio.to(audio.clean)))
    return AV(video, audio)


def _keep_tokens(state: StreamState, given: Tensor) -> StreamState:
    """Keep given tokens from the second on."""
    place = slice(1, 1 + given.shape[1])
    tokens = state.clean[:, : state.num_target].clone()
    keep = torch.zeros_like(tokens[..., :1])
    tokens[:, place], keep[:, place] = given, 1
    return keep_where(state, tokens, keep)


class DriftControl:
    """Keeps colours from wandering: pulls channels' mean and deviation towards those of the first window.

    The pull grows from nothing at the seam to its full strength at the end of a window, so that it makes no
    step; the next window begins with what it left.

    Source: the statistics, Huang and Belongie 2017 (arXiv 1703.06868), eq. 8.
    """

    def __init__(self, strength: float, num_kept: int) -> None:
        """Set it up for one stage.

        Args:
            strength: 0 changes nothing, 1 ends every window with the statistics of the first.
            num_kept: Latent frames that a window takes over, which are left as they are.
        """
        self.strength = strength
        self.num_kept = num_kept
        self._first: tuple[Tensor, Tensor] | None = None

    def __call__(self, latents: VideoLatents) -> VideoLatents:
        """Correct the next window."""
        if self.strength == 0:
            return latents
        std, mean = torch.std_mean(latents, dim=(2, 3, 4), keepdim=True)
        if self._first is None:
            self._first = (std, mean)
            return latents
        target_std, target_mean = self._first
        matched = (latents - mean) / std.clamp(min=1e-6) * target_std + target_mean
        new = latents.shape[2] - self.num_kept
        ramp = torch.cat([torch.zeros(self.num_kept), torch.arange(1, new + 1) / new])
        return torch.lerp(latents, matched, (self.strength * ramp).to(latents)[:, None, None])


class Joiner:
    """Makes one clip of windows as they come."""

    def __init__(self, canvas: Canvas, windows: Windows, sample_rate: int) -> None:
        self.canvas = canvas
        self.windows = windows
        self.sample_rate = sample_rate
        self._index = 0
        self._frames: Tensor | None = None  # of the window before, where it passes into this one
        self._sound: Tensor | None = None

    def add(self, pixels: Float[Tensor, "3 f h w"] | None, waveform: Sound | None) -> Made:
        """Take what a window made, the picture cut to size, and return what is finished by it."""
        made = Made(
            None if pixels is None else self._picture(pixels).clamp(-1, 1),
            None if waveform is None else self._heard(waveform).clamp(-1, 1),
        )
        self._index += 1
        return made

    @property
    def is_last(self) -> bool:
        """Whether the window that comes now is the last."""
        return self._index == self.windows.count - 1

    def _picture(self, pixels: Float[Tensor, "3 f h w"]) -> Float[Tensor, "3 part h w"]:
        """Blend into the window before and hold back what the next one blends into."""
        quarter = self.windows.overlap // 4
        offset = self._index * self.windows.advance
        begin = quarter if self._index else 0
        if self._frames is not None:
            length = self._frames.shape[1]
            ramp = (torch.arange(1, length + 1) / (length + 1))[:, None, None]
            pixels = pixels.clone()
            place = slice(begin, begin + length)
            pixels[:, place] = torch.lerp(self._frames, pixels[:, place], ramp)
        if self.is_last:
            return pixels[:, begin : self.canvas.num_frames - offset]
        end = self.windows.advance + quarter
        self._frames = pixels[:, end : self.windows.num_frames - quarter].clone()
        return pixels[:, begin:end]

    def _heard(self, waveform: Sound) -> Float[Tensor, "ch part"]:
        """The same for the sound, around the middle of the overlap."""
        offset = self._samples(self._index * self.windows.advance)
        fade = round(CROSSFADE * self.sample_rate)
        middle = self._samples(self.windows.overlap) // 2
        begin = middle - fade // 2 if self._index else 0
        if self._sound is not None:
            place = slice(begin, begin + fade)
            waveform = waveform.clone()
            waveform[:, place] = crossfade(self._sound, waveform[:, place])
        if self.is_last:
            total = self.canvas.num_samples(self.sample_rate) - offset
            return fit_sound(waveform, total, self.sample_rate)[:, begin:]
        following = self._samples((self._index + 1) * self.windows.advance) - offset
        end = following + middle - fade // 2
        self._sound = waveform[:, end : end + fade].clone()
        return waveform[:, begin:end]

    def _samples(self, num_frames: int) -> int:
        return self.canvas.num_samples(self.sample_rate, num_frames)


def crossfade(
    ending: Float[Tensor, "ch samples"], beginning: Float[Tensor, "ch samples"]
) -> Float[Tensor, "ch samples"]:
    """Pass from one sound into another at equal power, however alike they are.

    Gains of cosine and sine keep the power of two sounds that have nothing to do with each other, but make a
    sound that passes into itself swell by 3 dB; dividing by the root of 1 + 2 r cos sin, with r their
    correlation, keeps it for both.
    """
    angle = torch.linspace(0, torch.pi / 2, ending.shape[1])
    power = ending.square().sum() * beginning.square().sum()
    likeness = ((ending * beginning).sum() / power.sqrt().clamp(min=1e-12)).clamp(0, 1)
    gain = 1 / (1 + 2 * likeness * angle.cos() * angle.sin()).sqrt()
    return gain * (angle.cos() * ending + angle.sin() * beginning)


def drift_controls(strength: float, stages: Sequence[Stage], windows: Windows) -> list[DriftControl]:
    """Set up drift control for the stages of a plan."""
    factors = [stage.grid.geometry.temporal_factor for stage in stages]
    return [DriftControl(strength, (windows.overlap - 1) // factor + 1) for factor in factors]
