"""A given sound, for which a picture is made: the sound's stream is frozen and exact."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from soundstage.core.geometry import num_audio_samples, parse_frame_rate
from soundstage.core.types import AV
from soundstage.dsp.resample import resample
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.conditions import StreamState, empty_audio, empty_video, freeze
from soundstage.pipelines.delivery import WithOriginalSound
from soundstage.pipelines.generation import Delivery, Generation, NewClip
from soundstage.pipelines.given import without_media
from soundstage.pipelines.modes.mode import BOTH, LONGEST, PICTURE, Mode, Model, Setting
from soundstage.pipelines.modes.pictures import Timeline, crowded, follow_references, show_images
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
        seconds = min(self._sound[0].shape[1] / self._sound[1], LONGEST)
        return replace(plain, num_frames=max(round(seconds * frame_rate), 1))

    @property
    def generates(self) -> tuple[Stream, ...]:
        """The picture, and the rest of the sound if that is wanted."""
        return BOTH if self.given.complete_audio else PICTURE

    def states(self, setting: Setting) -> AV[StreamState]:
        """Freeze the sound, or keep its part of the clip."""
        video = show_images(
            empty_video(setting.grid),
            setting,
            self.given,
            self.model,
            Timeline(num_frames=setting.canvas.num_frames),
        )
        return AV(follow_references(video, setting, self.given), self.sound_state(setting))

    def sound_state(self, setting: Setting) -> StreamState:
        """Give the sound as the model is to hear it."""
        waveform, rate = self._sound
        heard = heard_copy(waveform, rate, self.given)
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
            notes=(*made.notes, *crowded(self.given, num_frames, made.frame_rate)),
        )

    def _at(self, waveform: Tensor, sample_rate: int) -> Tensor:
        return resample(waveform[None], sample_rate, self._sound[1])[0]

    @property
    def _path(self) -> Path:
        assert self.given.audio is not None
        return self.given.audio

    @cached_property
    def _sound(self) -> tuple[Tensor, int]:
        settled = self.given.duration is not None or self.given.num_frames is not None
        start = self.given.audio_start or 0.0
        return load_sound(self._path, start=start, duration=None if settled else LONGEST)
