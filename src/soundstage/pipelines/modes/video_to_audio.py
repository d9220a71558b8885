"""A given video, for which sound is made: the picture's stream is frozen, its packets are copied."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from torch import Tensor

from soundstage.core.errors import MediaError, RequestError
from soundstage.core.types import AV
from soundstage.dsp.resample import resample
from soundstage.media.probe import VideoInfo, probe
from soundstage.media.video import Frames, Reading, read_clip, to_pixels
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.conditions import StreamState, empty_audio, empty_video, freeze
from soundstage.pipelines.delivery import CopiedPicture
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.given import without_media
from soundstage.pipelines.inputs import parse_size
from soundstage.pipelines.modes.footage import interlaced_note, usual_size
from soundstage.pipelines.modes.mode import LONGEST, SOUND, Mode, Model, Setting
from soundstage.pipelines.modes.pictures import extend_to, hold_last
from soundstage.pipelines.modes.sounds import continue_sound, fit_length, follow_voice, heard_copy, load_sound
from soundstage.pipelines.modes.window import keep_sound_until
from soundstage.pipelines.request import GenerationRequest

HIGHEST_RATE = (
    30  # frames per second that the model sees; of faster clips it sees every second, third ... one
)


@dataclass(frozen=True)
class VideoToAudio(Mode):
    """The sound is generated; what it costs depends on the size at which the model sees the video."""

    given: GenerationRequest
    model: Model

    @cached_property
    def request(self) -> GenerationRequest:
        """A clip as long as the video, at the conditioning size.

        Raises:
            MediaError: The file has no video.
            RequestError: The video is too long for a sound of which the beginning is given.
        """
        info = video_of(self._path)
        if self.given.complete_audio and info.duration > LONGEST + 0.5:
            raise RequestError(
                f"{self._path} lasts {float(info.duration):.1f} s; complete_audio goes up to {LONGEST:g} s; "
                "without audio and complete_audio any length goes"
            )
        rate = info.frame_rate / math.ceil(info.frame_rate / HIGHEST_RATE)
        height, width = condition_size(self.given, info, self.model)
        frames = max(round(info.duration * rate), 1)
        return without_media(self.given, width=width, height=height, num_frames=frames, frame_rate=rate)

    @property
    def generates(self) -> tuple[Stream, ...]:
        """The sound."""
        return SOUND

    def states(self, setting: Setting) -> AV[StreamState]:
        """Freeze the picture; of the sound, keep what is given as its beginning."""
        first = round(setting.start * setting.canvas.frame_rate)
        count = setting.canvas.padded_frames
        frames = self._read(first, count) if setting.canvas.windows else self._frames
        frames = extend_to(hold_last(frames, count), setting.padded_size)
        video = freeze(empty_video(setting.grid), setting.grid.tokens(setting.encoders.video(frames)))
        audio = empty_audio(setting.audio_geometry, setting.num_audio_tokens)
        if self._beginning is not None:
            waveform, rate = self._beginning
            heard = heard_copy(waveform, rate, self.given)
            tokens = setting.encoders.audio_tokens(heard, rate, setting.num_audio_tokens)
            audio = keep_sound_until(audio, tokens, waveform.shape[1] / rate)
        return AV(video, follow_voice(audio, setting, self.given))

    def finish(self, made: Generation) -> Generation:
        """Show the picture as the model saw it; in the file it is the video's own."""
        assert made.waveform is not None
        waveform, rate = made.waveform, made.sample_rate
        if self._beginning is not None:
            beginning, rate = self._beginning
            made_at_rate = resample(waveform[None], made.sample_rate, rate)[0]
            length = round(Fraction(waveform.shape[1] * rate, made.sample_rate))
            waveform = fit_length(made_at_rate, length)
            waveform = continue_sound(beginning, waveform, min(beginning.shape[1], length), rate)
        return replace(
            made,
            pixels=to_pixels(hold_last(self._frames, self.request.num_frames or 1)),
            waveform=waveform.clamp(-1, 1),
            sample_rate=rate,
            delivery=CopiedPicture(self._path),
            notes=(*_length_notes(made), *interlaced_note(video_of(self._path), self._path)),
        )

    @property
    def _path(self) -> Path:
        assert self.given.video is not None
        return self.given.video

    @cached_property
    def _frames(self) -> Frames:
        return self._read(0, self.request.num_frames)

    def _read(self, first: int, count: int | None) -> Frames:
        """Read frames as the model is to see them; fewer than `count` at the end."""
        request = self.request
        assert request.height is not None
        assert request.width is not None
        size = request.height, request.width
        rate = Fraction(request.frame_rate or 1)
        reading = Reading(start=first / rate, size=size, frame_rate=rate, max_frames=count)
        return read_clip(self._path, reading, sound=False).frames

    @cached_property
    def _beginning(self) -> tuple[Tensor, int] | None:
        if self.given.audio is None:
            return None
        return load_sound(self.given.audio, start=self.given.audio_start or 0.0, duration=LONGEST)


def video_of(path: Path) -> VideoInfo:
    """Look at a file's video without decoding it.

    Raises:
        MediaError: It has none.
    """
    info = probe(path).video
    if info is None:
        raise MediaError(f"{path} has no video")
    return info


def condition_size(request: GenerationRequest, info: VideoInfo, model: Model) -> tuple[int, int]:
    """Choose height and width at which the model sees a video."""
    if request.condition_size is not None:
        return parse_size(request.condition_size)
    return usual_size(info.size, model)


def _length_notes(made: Generation) -> list[str]:
    """Keep the notes about the clip's length; how its picture was fitted to the grid is not shown."""
    return [note for note in made.notes if "windows of" in note or "is beyond the" in note]
