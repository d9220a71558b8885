"""A region of a given video is painted anew, or a margin around it; everything else stays, and the sound."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from soundstage.core.errors import MediaError
from soundstage.core.geometry import num_audio_samples
from soundstage.core.types import AV, TokenMask
from soundstage.media.image import read_image
from soundstage.media.placement import resize_frames
from soundstage.media.video import Frames, Reading, read_clip, to_pixels
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.conditions import StreamState, empty_video, keep_where
from soundstage.pipelines.delivery import WithOriginalSound
from soundstage.pipelines.generation import Generation, NewClip
from soundstage.pipelines.given import without_media
from soundstage.pipelines.inputs import parse_canvas
from soundstage.pipelines.modes.footage import Footage, size_note, working_size
from soundstage.pipelines.modes.mode import PICTURE, Mode, Model, Setting
from soundstage.pipelines.modes.pictures import (
    extend_to,
    follow_references,
    hold_last,
    is_still,
    scaled,
    show_images,
)
from soundstage.pipelines.modes.sounds import fit_length, heard_copy, load_sound
from soundstage.pipelines.modes.window import Stretch
from soundstage.pipelines.request import GenerationRequest

FEATHER = 3  # pixels over which what was painted fades in, inside of the mask

Mask = Bool[Tensor, "f h w"]  # True where the video is painted anew


@dataclass(frozen=True)
class Paint(Mode):
    """The picture is generated where the mask says; the sound is the video's own."""

    given: GenerationRequest
    model: Model

    @cached_property
    def request(self) -> GenerationRequest:
        """A clip of the canvas's size and the video's length."""
        height, width = working_size(self.given, self._size, self.model)
        footage = self._footage
        return without_media(
            self.given,
            width=width,
            height=height,
            num_frames=footage.num_frames,
            frame_rate=footage.frame_rate,
        )

    @property
    def generates(self) -> tuple[Stream, ...]:
        """The picture."""
        return PICTURE

    def states(self, setting: Setting) -> AV[StreamState]:
        """Keep every token of which no pixel is to be painted; freeze the sound."""
        frames = hold_last(resize_frames(self._frames, setting.size), setting.canvas.padded_frames)
        tokens = setting.grid.tokens(setting.encoders.video(extend_to(frames, setting.padded_size)))
        keep = 1 - painted_tokens(self._mask, setting)
        video = keep_where(empty_video(setting.grid), tokens, keep)
        video = show_images(video, setting, self.given, self.model, setting.timeline)
        return AV(follow_references(video, setting, self.given), self._sound.sound_state(setting))

    def finish(self, made: Generation) -> Generation:
        """Put the painted region into the video; every pixel outside the mask is the video's own."""
        assert made.pixels is not None
        given = to_pixels(self._frames)
        painted = scaled(made.pixels, self._size)
        weight = soft_edge(self._mask)
        sound = self._heard
        source = WithOriginalSound(self.given.audio or self._footage.path, self.given.audio_start or 0.0)
        return replace(
            made,
            pixels=torch.where(weight > 0, torch.lerp(given, painted, weight), given),
            waveform=None if sound is None else sound[0].clamp(-1, 1),
            sample_rate=self._footage.sample_rate if sound is None else sound[1],
            notes=(*made.notes, *self._footage.notes, *size_note(self.given, self._size, self.model)),
            delivery=NewClip() if sound is None else source,
        )

    @cached_property
    def _heard(self) -> tuple[Tensor, int] | None:
        """The sound of the result and its rate: one that is given, or the video's own."""
        if self.given.audio is None:
            return self._footage.sound
        waveform, rate = load_sound(self.given.audio, start=self.given.audio_start or 0.0)
        length = num_audio_samples(self._footage.num_frames, self._footage.frame_rate, rate)
        return fit_length(waveform, length), rate

    @cached_property
    def _footage(self) -> Footage:
        assert self.given.video is not None
        return Footage(self.given.video)

    @cached_property
    def _margins(self) -> tuple[int, int, int, int]:
        if self.given.outpaint is None:
            return 0, 0, 0, 0
        return parse_canvas(self.given.outpaint, *self._footage.size)

    @property
    def _size(self) -> tuple[int, int]:
        top, bottom, left, right = self._margins
        height, width = self._footage.size
        return height + top + bottom, width + left + right

    @cached_property
    def _frames(self) -> Frames:
        """The video on its canvas, its edges repeated."""
        frames = self._footage.frames()
        top, _, left, _ = self._margins
        rows = (torch.arange(self._size[0]) - top).clamp(0, frames.shape[1] - 1)
        columns = (torch.arange(self._size[1]) - left).clamp(0, frames.shape[2] - 1)
        return frames[:, rows][:, :, columns]

    @cached_property
    def _mask(self) -> Mask:
        if self.given.outpaint is not None:
            top, bottom, left, right = self._margins
            height, width = self._size
            margin = torch.ones(1, height, width, dtype=torch.bool)
            margin[:, top : height - bottom, left : width - right] = False
            return margin.expand(self._footage.num_frames, -1, -1)
        return self._read_mask()

    def _read_mask(self) -> Mask:
        path, footage = self.given.mask, self._footage
        assert path is not None
        if is_still(path):
            frames = read_image(path)[None]
        else:
            reading = Reading(frame_rate=footage.frame_rate, max_frames=footage.num_frames)
            frames = read_clip(path, reading, sound=False).frames
        mask = resize_frames(frames, footage.size).float().mean(-1) > 127.5
        if not mask.any():
            raise MediaError(f"mask {path} is black everywhere; white is what is painted anew")
        return mask[torch.arange(footage.num_frames).clamp(max=len(mask) - 1)]

    @property
    def _sound(self) -> Stretch:
        """The sound, all of it given."""
        sound = self._heard
        return Stretch(
            frames=self._frames,
            made=torch.zeros(self._footage.num_frames, dtype=torch.bool),
            frame_rate=self._footage.frame_rate,
            waveform=None if sound is None else heard_copy(*sound, self.given),
            sample_rate=self._footage.sample_rate if sound is None else sound[1],
        )


def painted_tokens(mask: Mask, setting: Setting) -> TokenMask:
    """Mark the tokens of which any pixel in any frame is to be painted."""
    geometry, size = setting.grid.geometry, setting.grid.geometry.token_size
    shown = F.adaptive_max_pool2d(mask[:, None].float(), setting.size)
    pictures = shown.permute(0, 2, 3, 1).to(torch.uint8).expand(-1, -1, -1, 3)
    frames = hold_last(pictures, setting.canvas.padded_frames)
    padded = extend_to(frames, setting.padded_size)[..., 0].float()
    cells = F.max_pool2d(padded[:, None], size)[:, 0]  # (frames, rows, columns)
    later = cells[1:].view(-1, geometry.temporal_factor, *cells.shape[1:]).amax(1)
    return torch.cat([cells[:1], later]).reshape(1, -1, 1)


def soft_edge(mask: Mask) -> Float[Tensor, "f h w"]:
    """Weigh what was painted: 0 outside of the mask, rising to 1 over a few pixels inside of it."""
    weight = torch.zeros(mask.shape)
    inside = mask.float()
    for _ in range(FEATHER):
        weight += inside / FEATHER
        inside = 1 - F.max_pool2d(1 - inside[:, None], 3, stride=1, padding=1)[:, 0]
    return weight
