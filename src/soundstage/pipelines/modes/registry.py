"""All modes by name. What the user supplies decides the mode; there is nothing to choose."""

from collections.abc import Callable

from soundstage.pipelines.given import mode_of
from soundstage.pipelines.modes.audio_to_video import AudioToVideo
from soundstage.pipelines.modes.bridge import extend, join
from soundstage.pipelines.modes.mode import Mode, Model
from soundstage.pipelines.modes.paint import Paint
from soundstage.pipelines.modes.retake import Retake
from soundstage.pipelines.modes.text import FromText
from soundstage.pipelines.modes.video_to_audio import VideoToAudio
from soundstage.pipelines.request import GenerationRequest

MODES: dict[str, Callable[[GenerationRequest, Model], Mode]] = {
    "text_to_audio_video": FromText,
    "image_to_audio_video": FromText,
    "reference_to_audio_video": FromText,
    "text_to_audio": FromText,
    "text_to_video": FromText,
    "audio_to_video": AudioToVideo,
    "video_to_audio": VideoToAudio,
    "retake": Retake,
    "extend": extend,
    "join": join,
    "inpaint": Paint,
    "outpaint": Paint,
}


def mode_for(request: GenerationRequest, model: Model) -> Mode:
    """Make the mode that a request amounts to."""
    return MODES[mode_of(request)](request, model)
