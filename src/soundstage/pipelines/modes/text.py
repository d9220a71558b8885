"""From a prompt, perhaps with pictures to show and clips or voices to follow: picture, sound, or both."""

from dataclasses import dataclass, replace

from soundstage.core.types import AV
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.conditions import StreamState, empty_audio, empty_video
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.given import without_media
from soundstage.pipelines.modes.mode import BOTH, PICTURE, SOUND, Mode, Model, Setting
from soundstage.pipelines.modes.pictures import crowded, follow_references, show_images
from soundstage.pipelines.modes.sounds import follow_voice
from soundstage.pipelines.request import GenerationRequest


@dataclass(frozen=True)
class FromText(Mode):
    """Both streams are generated, or one if the other is not wanted."""

    given: GenerationRequest
    model: Model

    @property
    def request(self) -> GenerationRequest:
        """The request itself: nothing that was given decides the size."""
        return without_media(self.given)

    @property
    def generates(self) -> tuple[Stream, ...]:
        """What is wanted."""
        if self.given.no_video:
            return SOUND
        return PICTURE if self.given.no_audio else BOTH

    def states(self, setting: Setting) -> AV[StreamState]:
        """Give pictures and references; a stream that is to be skipped is absent."""
        given = self.given
        video = audio = None
        if not given.no_video:
            video = show_images(empty_video(setting.grid), setting, given, self.model, setting.timeline)
            video = follow_references(video, setting, given)
        if given.no_audio != "skip":
            audio = empty_audio(setting.audio_geometry, setting.num_audio_tokens)
            audio = follow_voice(audio, setting, given)
        return AV(video, audio)

    def finish(self, made: Generation) -> Generation:
        """Say which pictures compete."""
        if made.pixels is None:
            return made
        close = crowded(self.given, made.pixels.shape[1], made.frame_rate, self.model.geometry)
        return replace(made, notes=(*made.notes, *close))
