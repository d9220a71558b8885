"""Ways to write a generation that reuse what was given: its picture, its sound, or all but a span of it."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from soundstage.media.mux import write_clip
from soundstage.media.remux import replace_sound
from soundstage.media.splice import splice_frames
from soundstage.media.tracks import OriginalSound
from soundstage.pipelines.generation import Generation

WholeSound = Float[Tensor, "2 samples"]


@dataclass(frozen=True)
class WithOriginalSound:
    """A new picture with the sound of a file."""

    source: Path
    start: float = 0.0  # seconds

    def write(self, path: Path, made: Generation, crf: int) -> None:
        """Encode the picture and take the sound over."""
        assert made.pixels is not None
        write_clip(
            path,
            made.pixels,
            OriginalSound(self.source, self.start),
            frame_rate=made.frame_rate,
            metadata=made.metadata,
            crf=crf,
        )


@dataclass(frozen=True)
class CopiedPicture:
    """A file's picture, packet by packet, with a new sound."""

    source: Path

    def write(self, path: Path, made: Generation, crf: int) -> None:  # noqa: ARG002  nothing is encoded
        """Copy the picture and encode the sound."""
        assert made.waveform is not None
        replace_sound(self.source, made.waveform, path, sample_rate=made.sample_rate, metadata=made.metadata)


@dataclass(frozen=True)
class Retaken:
    """A file in which a span is new; everything else is as it was, frame for frame and sample for sample."""

    source: Path
    span: range  # frames of the file that are new
    offset: int  # frame of the file at which the generation begins
    picture: bool  # whether the picture is new there
    sound: WholeSound | None = None  # of the whole file; None keeps the file's own
    sample_rate: int = 48_000  # Hz, of that sound

    def write(self, path: Path, made: Generation, crf: int) -> None:
        """Replace frames, or the sound, or both."""
        if not self.picture:
            assert self.sound is not None
            replace_sound(
                self.source,
                self.sound,
                path,
                sample_rate=self.sample_rate,
                sound_codec="alac",
                metadata=made.metadata,
            )
            return
        splice_frames(
            self.source,
            path,
            made.frames[self.span.start - self.offset : self.span.stop - self.offset],
            span=self.span,
            sound="keep" if self.sound is None else self.sound,
            sample_rate=self.sample_rate,
            metadata=made.metadata,
            crf=min(crf, 12),
        )
