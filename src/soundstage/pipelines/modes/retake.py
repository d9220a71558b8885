"""A span of a given video is made again; everything around it stays.

    file     ───────────────[ context ][ span ][ context ]──────────────────
    stretch                 └── what is read, encoded and generated ──┘

Only the stretch is worked on, however long the file is.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from soundstage.core.errors import MediaError, RequestError
from soundstage.core.types import AV
from soundstage.dsp.resample import resample
from soundstage.media.video import to_pixels
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.delivery import Retaken
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.given import without_media
from soundstage.pipelines.inputs import parse_size, parse_span
from soundstage.pipelines.modes.footage import Footage
from soundstage.pipelines.modes.mode import BOTH, PICTURE, SOUND, Mode, Model, Setting
from soundstage.pipelines.modes.pictures import Timeline, follow_references, show_images
from soundstage.pipelines.modes.sounds import fit_length, follow_voice, replace_span
from soundstage.pipelines.modes.window import FEATHER, Stretch, samples_at
from soundstage.pipelines.request import GenerationRequest

CONTEXT = 1.0  # seconds before and after the span that the model sees


@dataclass(frozen=True)
class Place:
    """Where in the file a retake happens, in frames."""

    begin: int  # of the stretch
    end: int
    first: int  # of the span
    last: int  # the first frame after it


@dataclass(frozen=True)
class Retake(Mode):
    """Picture, sound, or both are generated within the span."""

    given: GenerationRequest
    model: Model

    @cached_property
    def request(self) -> GenerationRequest:
        """A clip of the stretch's length.

        Raises:
            MediaError: The file cannot be edited.
            RequestError: The span lies outside the video.
        """
        height, width = self._footage.size
        if self.given.condition_size is not None:
            height, width = parse_size(self.given.condition_size)
        if self.given.keep == "video" and self._footage.sound is None:
            raise MediaError(
                f"{self._footage.path} has no sound to retake; without retake, sound is made for all of it"
            )
        return without_media(
            self.given,
            width=width,
            height=height,
            num_frames=self._place.end - self._place.begin,
            frame_rate=self._footage.frame_rate,
        )

    @property
    def generates(self) -> tuple[Stream, ...]:
        """Picture and sound, but for the one that is kept."""
        if self.given.keep == "video":
            return SOUND
        return PICTURE if self.given.keep == "audio" or self._footage.sound is None else BOTH

    @property
    def first_frame(self) -> int:
        """Where the stretch begins."""
        return self._place.begin

    def states(self, setting: Setting) -> AV[StreamState]:
        """Give the stretch; within the span, what is not kept is generated."""
        video = self._stretch.video_state(setting)
        audio = self._stretch.sound_state(setting)
        if not video.frozen:
            timeline = Timeline(num_frames=self._footage.num_frames, first=self._place.begin)
            video = show_images(video, setting, self.given, self.model, timeline)
            video = follow_references(video, setting, self.given)
        return AV(video, audio if audio.frozen else follow_voice(audio, setting, self.given))

    def finish(self, made: Generation) -> Generation:
        """Fade the new into the old, inside the span, and put the stretch back into the file."""
        place, footage, stretch = self._place, self._footage, self._stretch
        pixels = to_pixels(stretch.frames)
        if made.pixels is not None:
            pixels = stretch.merge(made.pixels, feather=FEATHER)
        whole = None if footage.sound is None else self._whole_sound(made)
        rate = footage.sample_rate
        start, end = (samples_at(frame, footage.frame_rate, rate) for frame in (place.begin, place.end))
        silent = () if footage.sound is not None else (f"{footage.path.name} has no sound and stays silent",)
        return replace(
            made,
            pixels=pixels,
            waveform=None if whole is None else whole[:, start:end].clamp(-1, 1),
            sample_rate=rate,
            start=float(place.begin / footage.frame_rate),
            delivery=Retaken(
                source=footage.path,
                span=range(place.first, place.last),
                offset=place.begin,
                picture=self.given.keep != "video",
                sound=whole if made.waveform is not None else None,
                sample_rate=rate,
            ),
            notes=(*made.notes, *silent),
        )

    def _whole_sound(self, made: Generation) -> Tensor:
        """Return the file's sound with the span replaced, if sound was made."""
        footage, place = self._footage, self._place
        assert footage.sound is not None
        whole, rate = footage.sound
        if made.waveform is None:
            return whole
        start = samples_at(place.begin, footage.frame_rate, rate)
        new = fit_length(resample(made.waveform[None], made.sample_rate, rate)[0], whole.shape[1] - start)
        placed = torch.cat([whole[:, :start], new], dim=1)
        span = [min(round(second * rate), whole.shape[1]) for second in self._span]
        return replace_span(whole, placed, span[0], span[1], rate)

    @cached_property
    def _footage(self) -> Footage:
        assert self.given.video is not None
        return Footage(self.given.video)

    @cached_property
    def _span(self) -> tuple[float, float]:
        assert self.given.retake is not None
        start, end = parse_span(self.given.retake)
        duration = self._footage.duration
        if start >= duration or end > duration + 0.1:
            raise RequestError(
                f"retake={self.given.retake} is outside of {self._footage.path}, which lasts {duration:.2f} s"
            )
        return start, min(end, duration)

    @cached_property
    def _place(self) -> Place:
        rate, total = self._footage.frame_rate, self._footage.num_frames
        factor = self.model.geometry.temporal_factor
        first = min(math.floor(self._span[0] * rate + 1e-6), total - 1)
        last = min(math.ceil(self._span[1] * rate - 1e-6), total)
        context = math.ceil(CONTEXT * rate)
        # The span begins where a latent frame does, if there is enough before it.
        begin = max(first - 1 - math.ceil((context - 1) / factor) * factor, 0)
        end = begin + self.model.geometry.fit_num_frames(last + context - begin)
        return Place(begin, min(end, total), first, last)

    @cached_property
    def _stretch(self) -> Stretch:
        footage, place = self._footage, self._place
        index = torch.arange(place.begin, place.end)
        made = (index >= place.first) & (index < place.last) & (self.given.keep != "video")
        offset = float(place.begin / footage.frame_rate)
        waveform = None
        if footage.sound is not None:
            waveform = footage.sound[0][:, samples_at(place.begin, footage.frame_rate, footage.sample_rate) :]
        span = (self._span[0] - offset, self._span[1] - offset)
        return Stretch(
            frames=footage.frames(place.begin, place.end - place.begin),
            made=made,
            frame_rate=footage.frame_rate,
            waveform=waveform,
            sample_rate=footage.sample_rate,
            made_sound=() if self.given.keep == "audio" else (span,),
        )
