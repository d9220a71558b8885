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
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.delivery import Retaken
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.given import without_media
from soundstage.pipelines.inputs import parse_span
from soundstage.pipelines.modes.footage import Footage, size_note, working_size
from soundstage.pipelines.modes.mode import BOTH, PICTURE, SOUND, Mode, Model, Setting, Timeline
from soundstage.pipelines.modes.pictures import follow_references, show_images
from soundstage.pipelines.modes.sounds import GivenSound, fit_length, follow_voice, replace_span, sound_for
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
        height, width = working_size(self.given, self._footage.size, self.model)
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
        is_heard = self._footage.sound is not None and self.given.audio is None
        return BOTH if is_heard and self.given.keep is None else PICTURE

    @property
    def first_frame(self) -> int:
        """Where the stretch begins."""
        return self._place.begin

    def timeline(self, canvas: Canvas) -> Timeline:  # noqa: ARG002  the file decides
        """Show pictures within the span."""
        place = self._place
        span = range(place.first, place.last)
        return Timeline(num_frames=self._footage.num_frames, first=place.begin, shown=span)

    def states(self, setting: Setting) -> AV[StreamState]:
        """Give the stretch; within the span, what is not kept is generated."""
        video = self._stretch.video_state(setting)
        audio = self._stretch.sound_state(setting)
        if not video.frozen:
            timeline = self.timeline(setting.canvas)
            video = show_images(video, setting, self.given, self.model, timeline)
            video = follow_references(video, setting, self.given)
        return AV(video, audio if audio.frozen else follow_voice(audio, setting, self.given))

    def finish(self, made: Generation) -> Generation:
        """Fade the new into the old, inside the span, and put the stretch back into the file."""
        place, footage, stretch = self._place, self._footage, self._stretch
        pixels = to_pixels(stretch.frames)
        if made.pixels is not None:
            pixels = stretch.merge(made.pixels, feather=FEATHER)
        whole = self._whole_sound(made)
        rate = footage.sample_rate
        start, end = (samples_at(frame, footage.frame_rate, rate) for frame in (place.begin, place.end))
        silent = () if whole is not None else (f"{footage.path.name} has no sound and stays silent",)
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
                sound=whole if made.waveform is not None or self.given.audio else None,
                sample_rate=rate,
            ),
            notes=(*made.notes, *footage.notes, *silent, *size_note(self.given, footage.size, self.model)),
        )

    def _whole_sound(self, made: Generation) -> Tensor | None:
        """Return the file's sound with the span replaced, if sound was made or given; None if it has none."""
        footage, place = self._footage, self._place
        if self._replaced is not None:
            return self._replaced.waveform
        if footage.sound is None:
            return None
        whole, rate = footage.sound
        if made.waveform is None:
            return whole
        start = samples_at(place.begin, footage.frame_rate, rate)
        new = fit_length(resample(made.waveform[None], made.sample_rate, rate)[0], whole.shape[1] - start)
        placed = torch.cat([whole[:, :start], new], dim=1)
        return replace_span(whole, placed, *self._samples_of_span(whole), rate)

    def _samples_of_span(self, whole: Tensor) -> tuple[int, int]:
        start, end = (min(round(s * self._footage.sample_rate), whole.shape[1]) for s in self._span)
        return start, end

    @cached_property
    def _replaced(self) -> GivenSound | None:
        """The file's sound with the given one in the span, if one was given."""
        if self.given.audio is None:
            return None
        footage, rate = self._footage, self._footage.sample_rate
        silence = torch.zeros(2, samples_at(footage.num_frames, footage.frame_rate, rate))
        whole = silence if footage.sound is None else footage.sound[0]
        start, end = self._samples_of_span(whole)
        parts = sound_for(self.given, end - start, rate)
        placed = (torch.nn.functional.pad(part, (start, whole.shape[1] - end)) for part in parts)
        return GivenSound(*(replace_span(whole, part, start, end, rate) for part in placed))

    @cached_property
    def _footage(self) -> Footage:
        assert self.given.video is not None
        return Footage(self.given.video, in_place=True)

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
        whole = None if footage.sound is None else footage.sound[0]
        if self._replaced is not None:
            whole = self._replaced.heard
        waveform = None
        if whole is not None:
            waveform = whole[:, samples_at(place.begin, footage.frame_rate, footage.sample_rate) :]
        span = (self._span[0] - offset, self._span[1] - offset)
        return Stretch(
            frames=footage.frames(place.begin, place.end - place.begin),
            made=made,
            frame_rate=footage.frame_rate,
            waveform=waveform,
            sample_rate=footage.sample_rate,
            made_sound=() if self.given.keep == "audio" or self.given.audio else (span,),
        )
