"""A clip as it is made: part after part, so that a long one is never held whole."""

import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch

from soundstage.core.errors import RequestError
from soundstage.core.progress import OnProgress, Progress
from soundstage.media.audio import write_wav
from soundstage.media.mux import write_clip, write_parts
from soundstage.media.tracks import OriginalSound
from soundstage.pipelines.beside import write_beside
from soundstage.pipelines.canvas import Canvas
from soundstage.pipelines.delivery import WithOriginalSound
from soundstage.pipelines.generation import Delivery, Generation, NewClip, metadata_of
from soundstage.pipelines.request import GenerationRequest
from soundstage.pipelines.windows import Part


class ClipStream:
    """A clip that is generated while it is read: iterate over its parts, or save it; once."""

    def __init__(
        self,
        parts: Iterator[Part],
        *,
        canvas: Canvas,
        sample_rate: int,
        request: GenerationRequest,
        model: str,
        notes: tuple[str, ...],
        weights: str = "",
        original: OriginalSound | None = None,
    ) -> None:
        """Take the parts and what is known before they are made.

        Args:
            weights: A fingerprint of the model's.
            original: The file whose sound the clip carries as it is.
        """
        self._parts = parts
        self.num_frames, self.height, self.width = canvas.num_frames, canvas.height, canvas.width
        self.frame_rate: Fraction = canvas.frame_rate
        self.num_parts = canvas.num_windows
        self.sample_rate = sample_rate
        self.request = request
        self.model, self.weights = model, weights
        self.notes = notes
        self.original = original
        self.writing = 0.0  # seconds that `save` spent on encoding, most of them beside other work

    def __iter__(self) -> Iterator[Part]:
        """Yield the parts in order; picture and sound of one end at slightly different moments."""
        return self._parts

    @property
    def metadata(self) -> dict[str, Any]:
        """What makes the clip; written into every file."""
        return metadata_of(self.request, self.model, self.notes, self.weights)

    def save(self, path: str | Path, *, crf: int = 18) -> Path:
        """Generate the clip into an .mp4, or its sound alone into a .wav; all of it or nothing.

        The file is written beside the generating, in a thread of its own.

        Args:
            crf: Quality of the picture: 0 is lossless, 18 visually so.

        Raises:
            RequestError: The name ends in something else.
            MediaError: The clip cannot be encoded.
            ResourceError: The disk is full or refuses the write.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".mp4", ".wav"):
            raise RequestError(f"output {path} ends neither in .mp4 nor in .wav")
        if suffix == ".wav":
            waveform = torch.cat([part.waveform for part in self], dim=1)
            write_wav(path, waveform, sample_rate=self.sample_rate, metadata=self.metadata)
        elif self.original is not None:
            write_clip(
                path,
                (part.pixels for part in self),
                self.original,
                frame_rate=self.frame_rate,
                metadata=self.metadata,
                crf=crf,
            )
        else:
            write = partial(
                write_parts,
                path,
                frame_rate=self.frame_rate,
                sample_rate=self.sample_rate,
                metadata=self.metadata,
                crf=crf,
            )
            self.writing = write_beside(self._parts, write)
        return path

    def collect(self) -> Generation:
        """Generate the clip and hold it whole."""
        parts = list(self)
        whole = (
            parts[0] if len(parts) == 1 else Part(*(torch.cat(x, dim=1) for x in zip(*parts, strict=True)))
        )
        delivery: Delivery = NewClip()
        if self.original is not None:
            delivery = WithOriginalSound(self.original.path, float(self.original.start))
        return Generation(
            delivery=delivery,
            pixels=whole.pixels,
            waveform=whole.waveform,
            sample_rate=self.sample_rate,
            frame_rate=self.frame_rate,
            request=self.request,
            model=self.model,
            weights=self.weights,
            notes=self.notes,
        )


class WindowProgress:
    """Turns the steps of each window into one stage, "windows", that counts windows."""

    def __init__(self, on_progress: OnProgress | None, num_windows: int) -> None:
        self.on_progress = on_progress
        self.num_windows = num_windows
        self.done = 0
        self._began = time.monotonic()

    def __call__(self, _: Progress | None = None) -> None:
        """Tell how many windows are done; called at every step of the work, so that it can be cancelled."""
        if self.on_progress is not None:
            seconds = time.monotonic() - self._began
            event = Progress(stage="windows", step=self.done, num_steps=self.num_windows, seconds=seconds)
            self.on_progress(event)

    def finish_window(self) -> None:
        """Count one more."""
        self.done += 1
        self()
