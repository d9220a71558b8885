"""A given sound, for which a picture is made: the sound's stream is frozen and exact."""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from torch import Tensor

from soundstage.core.geometry import num_audio_samples, parse_frame_rate
from soundstage.core.types import AV
from soundstage.dsp.resample import resample
from soundstage.media.tracks import OriginalSound
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.conditions import StreamState, empty_audio, empty_video, freeze
from soundstage.pipelines.delivery import WithOriginalSound
from soundstage.pipelines.generation import Delivery, Generation, NewClip
from soundstage.pipelines.given import without_media
from soundstage.pipelines.modes.mode import BOTH, LONGEST, PICTURE, Carried, Mode, Model, Setting
from soundstage.pipelines.modes.pictures import crowded, follow_references, show_images
from soundstage.pipelines.modes.sounds import continue_sound, fit_length, follow_voice, heard_copy, load_sound
from soundstage.pipelines.modes.window import keep_sound_until
from soundstage.pipelines.request import GenerationRequest


@dataclass(frozen=True)
class AudioToVideo(Mode):
    """The picture is generated. A sound shorter than the clip is followed by silence, or completed."""

    given: GenerationRequest
    model: Model

    @cached_property
    def request(self) -> GenerationRequest:
        """A clip as long as the sound, unless the request says how long."""
        plain = without_media(self.given)
        if self.given.duration is not None or self.given.num_frames is not None:
            return plain
        frame_rate = parse_frame_rate(self.given.frame_rate or self.model.defaults.frame_rate)
        seconds = Fraction(self._sound[0].shape[1], self._sound[1])
        return replace(plain, num_frames=max(round(seconds * frame_rate), 1))

    @property
    def generates(self) -> tuple[Stream, ...]:
        """The picture, and the rest of the sound if that is wanted."""
        return BOTH if self.given.complete_audio else PICTURE

    def carried(self, canvas: Canvas) -> Carried | None:
        """Carry the original sound, cut or followed by silence; one that is completed is another sound."""
        if self.given.complete_audio:
            return None
        waveform, rate = self._sound
        return Carried(
            waveform=fit_length(waveform, canvas.num_samples(rate)).clamp(-1, 1),
            sample_rate=rate,
            original=OriginalSound(self._path, self.given.audio_start or 0.0),
        )

    def states(self, setting: Setting) -> AV[StreamState]:
        """Freeze the sound, or keep its part of the clip."""
        video = show_images(empty_video(setting.grid), setting, self.given, self.model, setting.timeline)
        return AV(follow_references(video, setting, self.given), self.sound_state(setting))

    def sound_state(self, setting: Setting) -> StreamState:
        """Give the sound as the model is to hear it."""
        waveform, rate = self._sound
        heard, canvas = self._heard, setting.canvas
        if canvas.windows is not None:
            begin, count = (
                round(s * rate) for s in (setting.start, canvas.padded_frames / canvas.frame_rate)
            )
            heard = fit_length(heard[:, begin:], count)
        tokens = setting.encoders.audio_tokens(heard, rate, setting.num_audio_tokens)
        empty = empty_audio(setting.audio_geometry, setting.num_audio_tokens)
        if not self.given.complete_audio:
            return freeze(empty, tokens)
        kept = keep_sound_until(empty, tokens, waveform.shape[1] / rate)
        return follow_voice(kept, setting, self.given)

    def finish(self, made: Generation) -> Generation:
        """Put the original sound back: not a sample of it has been through the model."""
        assert made.pixels is not None
        num_frames = made.pixels.shape[1]
        waveform, rate = self._sound
        length = num_audio_samples(num_frames, made.frame_rate, rate)
        delivery: Delivery = WithOriginalSound(self._path, self.given.audio_start or 0.0)
        if self.given.complete_audio and made.waveform is not None:
            completed = fit_length(self._at(made.waveform, made.sample_rate), length)
            waveform = continue_sound(waveform, completed, min(waveform.shape[1], length), rate)
            delivery = NewClip()
        return replace(
            made,
            waveform=fit_length(waveform, length).clamp(-1, 1),
            sample_rate=rate,
            delivery=delivery,
            notes=(*made.notes, *crowded(self.given, num_frames, made.frame_rate, self.model.geometry)),
        )

    def _at(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return resample(waveform[None], sample_rate, self._sound[1])[0]

    @property
    def _path(self) -> Path:
        assert self.given.audio is not None
        return self.given.audio

    @cached_property
    def _heard(self) -> Tensor:
        return heard_copy(*self._sound, self.given)

    @cached_property
    def _sound(self) -> tuple[Tensor, int]:
        settled = self.given.duration is not None or self.given.num_frames is not None
        at_once = self.given.complete_audio or self.given.reference_video  # other clips come in windows
        limit = LONGEST if at_once and not settled else None
        return load_sound(self._path, start=self.given.audio_start or 0.0, duration=limit)
