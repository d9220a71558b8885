"""Modes: what a request gives of the two streams, as the states that a stage starts from.

What the user supplies decides the mode; there is nothing to choose. Every mode is a function from a setting
to the states of the two streams, built from `conditions`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from soundstage.core.geometry import AudioGeometry
from soundstage.core.types import AV
from soundstage.pipelines.conditions import StreamState, VideoGrid, empty_audio, empty_video
from soundstage.pipelines.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a mode builds the states of one stage from."""

    request: GenerationRequest
    grid: VideoGrid
    audio_geometry: AudioGeometry
    num_audio_tokens: int
    stage: int = 1  # of the plan, counted from 1; each has a grid of its own
    start: Fraction = Fraction(0)  # seconds from the beginning of a long clip to that of the window


def text_to_audio_video(setting: Setting) -> AV[StreamState]:
    """Give nothing but the prompt: both streams are generated."""
    return AV(empty_video(setting.grid), empty_audio(setting.audio_geometry, setting.num_audio_tokens))


MODES: dict[str, Callable[[Setting], AV[StreamState]]] = {"text_to_audio_video": text_to_audio_video}


def mode_of(request: GenerationRequest) -> str:  # noqa: ARG001  a prompt is all that a request can give
    """Tell which mode a request asks for."""
    return "text_to_audio_video"
