"""New frames and sound before, after or between given videos: extension and join.

extend forward    [ ... context | new ]
extend backward                 [ new | context ... ]
join              [ ... context | new | context ... ]
                          └── what the model works on ──┘
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import UInt8
from torch import Tensor

from soundstage.core.errors import RequestError
from soundstage.core.geometry import num_audio_samples
from soundstage.core.types import AV
from soundstage.dsp.resample import resample
from soundstage.media.video import Frames, to_pixels
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.conditions import StreamState
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.given import extension_of, without_media
from soundstage.pipelines.modes.footage import Footage, size_note, working_size
from soundstage.pipelines.modes.mode import BOTH, PICTURE, Mode, Model, Setting, Timeline
from soundstage.pipelines.modes.pictures import follow_references, scaled, show_images
from soundstage.pipelines.modes.sounds import (
    GivenSound,
    continue_sound,
    fit_length,
    follow_voice,
    lead_to,
    sound_for,
)
from soundstage.pipelines.modes.window import Stretch, samples_at
from soundstage.pipelines.request import GenerationRequest

CONTEXT = 3  # groups of frames of each given video that the model sees, beside one frame
Following = UInt8[Tensor, "after h w 3"]

BRIDGE = 1.0  # seconds, if the request does not say


@dataclass(frozen=True)
class Bridge(Mode):
    """Frames are generated beside what is given; what is given stays bit for bit."""

    given: GenerationRequest
    model: Model
    before: Footage | None
    after: Footage | None
    num_new: int

    @cached_property
    def request(self) -> GenerationRequest:
        """A clip of the contexts and what lies beside them."""
        height, width = working_size(self.given, self._footage.size, self.model)
        count = sum(self._contexts) + self.num_new
        rate = self._footage.frame_rate
        return without_media(self.given, width=width, height=height, num_frames=count, frame_rate=rate)

    @property
    def generates(self) -> tuple[Stream, ...]:
        """Both, or the picture alone if what is given is silent."""
        return PICTURE if self._silent or self.given.audio else BOTH

    @property
    def first_frame(self) -> int:
        """Where the contexts begin."""
        return self.before.num_frames - self._contexts[0] if self.before else 0

    def timeline(self, canvas: Canvas) -> Timeline:  # noqa: ARG002  the files decide
        """Show pictures in what is new."""
        begin = self.first_frame + self._contexts[0]
        new = range(begin, begin + self.num_new)
        return Timeline(num_frames=self._total, first=self.first_frame, shown=new)

    def states(self, setting: Setting) -> AV[StreamState]:
        """Keep the contexts in both streams."""
        timeline = self.timeline(setting.canvas)
        video = show_images(self._stretch.video_state(setting), setting, self.given, self.model, timeline)
        audio = self._stretch.sound_state(setting)
        return AV(
            follow_references(video, setting, self.given),
            audio if audio.frozen else follow_voice(audio, setting, self.given),
        )

    def finish(self, made: Generation) -> Generation:
        """Put everything in a row."""
        assert made.pixels is not None
        new = made.pixels[:, self._contexts[0] : self._contexts[0] + self.num_new]
        parts = [to_pixels(self.before.frames())] if self.before else []
        parts.append(scaled(new, self._footage.size))
        parts += [to_pixels(self.after.frames())] if self.after else []
        sound = None
        if self._given is not None:
            sound = self._sound(self._heard(self._given.waveform), self._sample_rate)
        elif made.waveform is not None:
            sound = self._sound(made.waveform, made.sample_rate)
        notes = [note for part in (self.before, self.after) if part for note in part.notes]
        silent = (f"{self._footage.path.name} has no sound, so the clip is silent",) if self._silent else ()
        return replace(
            made,
            pixels=torch.cat(parts, dim=1),
            waveform=sound,
            sample_rate=self._sample_rate,
            notes=(*made.notes, *notes, *silent, *size_note(self.given, self._footage.size, self.model)),
        )

    def _sound(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Place what was made on the result's clock, then put what is given before and after it."""
        rate, frame_rate = self._sample_rate, self._footage.frame_rate
        begin = samples_at(self.first_frame, frame_rate, rate)
        total = num_audio_samples(self._total, frame_rate, rate)
        new = resample(waveform[None], sample_rate, rate)[0]
        row = fit_length(torch.cat([torch.zeros(2, begin), new], dim=1), total)
        first = self.before.num_frames if self.before else 0
        if self.after is not None:
            at = samples_at(first + self.num_new, frame_rate, rate)
            row = lead_to(row, fit_length(_sound_of(self.after, rate), total - at), at, rate)
        if self.before is not None:
            at = samples_at(first, frame_rate, rate)
            row = continue_sound(fit_length(_sound_of(self.before, rate), at), row, at, rate)
        return row.clamp(-1, 1)

    @property
    def _footage(self) -> Footage:
        """The video that decides size and rate."""
        footage = self.before or self.after
        assert footage is not None
        return footage

    @property
    def _silent(self) -> bool:
        return self.given.audio is None and all(
            part is None or part.sound is None for part in (self.before, self.after)
        )

    @property
    def _sample_rate(self) -> int:
        return next((f.sample_rate for f in (self.before, self.after) if f and f.sound), 48_000)

    @cached_property
    def _contexts(self) -> tuple[int, int]:
        """Frames of each given video that the model sees."""
        most = CONTEXT * self.model.geometry.temporal_factor + 1
        crop = self.model.geometry.crop_num_frames  # so that what is kept ends where a latent frame does
        before = crop(min(self.before.num_frames, most)) if self.before else 0
        return before, min(self.after.num_frames, most) if self.after else 0

    @property
    def _total(self) -> int:
        given = sum(footage.num_frames for footage in (self.before, self.after) if footage)
        return given + self.num_new

    @cached_property
    def _stretch(self) -> Stretch:
        left, right = self._contexts
        before = self.before.frames(self.first_frame, left) if self.before else None
        after = self.after.frames(0, right) if self.after else None
        made = torch.zeros(left + self.num_new + right, dtype=torch.bool)
        made[left : left + self.num_new] = True
        rate = self._footage.frame_rate
        return Stretch(
            frames=_hold_between(before, after, self.num_new),
            made=made,
            frame_rate=rate,
            waveform=None if self._silent else self._heard(self._given.heard if self._given else None),
            sample_rate=self._sample_rate,
            made_sound=() if self._given else ((float(left / rate), float((left + self.num_new) / rate)),),
        )

    @cached_property
    def _given(self) -> GivenSound | None:
        """The sound of the new part, if one was given."""
        if self.given.audio is None:
            return None
        left, rate, frame_rate = self._contexts[0], self._sample_rate, self._footage.frame_rate
        begin, end = (samples_at(n, frame_rate, rate) for n in (left, left + self.num_new))
        return sound_for(self.given, end - begin, rate)

    def _heard(self, new: Tensor | None) -> Tensor:
        """Return the contexts' sound with what is given between them, or silence for what is to be made."""
        left, right = self._contexts
        rate, frame_rate = self._sample_rate, self._footage.frame_rate
        ends = [
            samples_at(n, frame_rate, rate) for n in (left, left + self.num_new, left + self.num_new + right)
        ]
        heard = torch.zeros(2, ends[2])
        if new is not None:
            heard[:, ends[0] : ends[1]] = new
        if self.before is not None:
            start = samples_at(self.first_frame, frame_rate, rate)
            heard[:, : ends[0]] = fit_length(_sound_of(self.before, rate)[:, start:], ends[0])
        if self.after is not None:
            heard[:, ends[1] :] = fit_length(_sound_of(self.after, rate), ends[2] - ends[1])
        return heard


def extend(given: GenerationRequest, model: Model) -> Bridge:
    """Make a given video longer, at its end or at its beginning.

    Raises:
        RequestError: Both are asked for at once.
    """
    assert given.video is not None
    footage, extension = Footage(given.video), extension_of(given)
    if len(extension) > 1:
        raise RequestError("extend works in one direction at a time; the result can be extended again")
    ((direction, seconds),) = extension.items()
    count = max(round(seconds * footage.frame_rate), 1)
    forward = direction == "forward"
    return Bridge(given, model, footage if forward else None, None if forward else footage, count)


def join(given: GenerationRequest, model: Model) -> Bridge:
    """Lead from one given video to another, which is brought to the size and rate of the first."""
    assert given.video is not None
    assert given.join is not None
    first = Footage(given.video)
    count = given.frames_at(first.frame_rate) or max(round(BRIDGE * first.frame_rate), 1)
    return Bridge(given, model, first, Footage(given.join, like=first), count)


def _hold_between(before: Frames | None, after: Following | None, count: int) -> UInt8[Tensor, "all h w 3"]:
    """Fill the gap with the nearest given frame."""
    parts = []
    half = count if after is None else 0 if before is None else count // 2
    if before is not None:
        parts += [before, before[-1:].expand(half, -1, -1, -1)]
    if after is not None:
        parts += [after[:1].expand(count - half, -1, -1, -1), after]
    return torch.cat(parts)


def _sound_of(footage: Footage, rate: int) -> Tensor:
    """Return the whole sound at a rate, silence if there is none."""
    if footage.sound is None:
        return torch.zeros(2, num_audio_samples(footage.num_frames, footage.frame_rate, rate))
    waveform, own = footage.sound
    return resample(waveform[None], own, rate)[0]
