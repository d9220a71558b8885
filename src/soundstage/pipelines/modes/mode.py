"""What every mode offers, and what it builds on.

request ─▶ mode ─▶ settled request: sizes and length, read off the files that were given
             ├───▶ states of both streams, once for each stage, at the stage's size
             └───▶ the generation finished: what was given back in its place, and how to write it
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction

from jaxtyping import Float
from torch import Tensor

from soundstage.checkpoints.generation import ImageScaling, SamplingDefaults
from soundstage.core.geometry import AudioGeometry, VideoGeometry
from soundstage.core.types import AV
from soundstage.media.tracks import OriginalSound
from soundstage.models.transformer.config import Stream
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.conditions import StreamState, VideoGrid
from soundstage.pipelines.encode import Encoders
from soundstage.pipelines.generation import Generation
from soundstage.pipelines.request import GenerationRequest

PICTURE: tuple[Stream, ...] = ("video",)
SOUND: tuple[Stream, ...] = ("audio",)
BOTH: tuple[Stream, ...] = ("video", "audio")

LONGEST = (
    20.0  # seconds of a given sound or video that are worked on: what the released models were trained for
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a mode needs to know of the model before anything is computed."""

    defaults: SamplingDefaults
    geometry: VideoGeometry
    image_crf: int  # H.264 quality of the pictures that the model was trained to continue
    image_scaling: ImageScaling = "plain"  # how they were brought to size


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Where a result's frames lie in the stretch that is generated."""

    num_frames: int  # of the whole result
    shown: range  # frames of the result that are generated: where pictures can be shown
    first: int = 0  # frame of the result at which the stretch begins
    in_windows: bool = False  # further stretches follow, and each shows the pictures that lie in it

    @classmethod
    def of(cls, num_frames: int) -> "Timeline":
        """Make that of a clip that is generated whole."""
        return cls(num_frames=num_frames, shown=range(num_frames))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a mode builds the states of one stage from."""

    canvas: Canvas
    grid: VideoGrid  # of the stage; a stage may be smaller than the canvas
    audio_geometry: AudioGeometry
    num_audio_tokens: int
    encoders: Encoders
    start: Fraction = Fraction(0)  # seconds from the beginning of a long clip to that of the window

    @property
    def timeline(self) -> Timeline:
        """Where the stretch lies in a clip of which everything is generated, at once or in windows."""
        canvas = self.canvas
        whole = Timeline.of(canvas.num_frames)
        first = round(self.start * canvas.frame_rate)
        return replace(whole, first=first, in_windows=canvas.windows is not None)

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the stage in pixels."""
        size = self.grid.geometry.token_size
        return self.grid.rows * size, self.grid.columns * size

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the part of the stage that will be shown."""
        size = self.canvas.grid.geometry.token_size
        full = self.canvas.grid.rows * size, self.canvas.grid.columns * size
        height, width = self.padded_size
        return round(self.canvas.height * height / full[0]), round(self.canvas.width * width / full[1])


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A given sound that is heard in the result as it is."""

    waveform: Float[Tensor, "2 samples"]  # exactly as long as the clip
    sample_rate: int  # Hz
    original: OriginalSound  # where a file can take it from


class Mode(ABC):
    """One way to use what a request gives. Made from a request and a `Model`; made anew for every clip."""

    @property
    @abstractmethod
    def request(self) -> GenerationRequest:
        """The request of a plain clip of the size and length that is to be generated."""

    @property
    @abstractmethod
    def generates(self) -> tuple[Stream, ...]:
        """The streams of which the result is decoded; the others are given or not wanted."""

    @property
    def first_frame(self) -> int:
        """Frame of the result at which what is generated begins."""
        return 0

    def timeline(self, canvas: Canvas) -> Timeline:
        """Say where pictures can be shown; by default anywhere in what is generated."""
        return Timeline.of(canvas.num_frames)

    def carried(self, canvas: Canvas) -> "Carried | None":  # noqa: ARG002  the modes with such a sound use it
        """Return the sound that was given for the whole clip, if the clip carries one."""
        return None

    @abstractmethod
    def states(self, setting: Setting) -> AV[StreamState]:
        """Build the states of both streams for one stage; None where a stream is absent."""

    @abstractmethod
    def finish(self, made: Generation) -> Generation:
        """Complete what was decoded by what was given."""
