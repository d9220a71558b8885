"""The result of a generation: a clip with its sound, and everything needed to make it again."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

import soundstage
from soundstage.core.errors import RequestError
from soundstage.media.audio import write_wav
from soundstage.media.mux import write_clip
from soundstage.media.video import Frames, to_frames
from soundstage.pipelines.request import GenerationRequest

FADE = 0.005  # seconds over which a sound that ends early fades out

Sound = Float[Tensor, "ch samples"]
FittedSound = Float[Tensor, "ch fitted"]


@runtime_checkable
class Delivery(Protocol):
    """How a generation becomes a video file; what was given may be copied into it instead of encoded."""

    def write(self, path: Path, made: "Generation", crf: int) -> None:
        """Write the whole file, or nothing."""


@dataclass(frozen=True)
class NewClip:
    """Everything is encoded anew."""

    def write(self, path: Path, made: "Generation", crf: int) -> None:
        """Write the picture and, if there is one, the sound."""
        assert made.pixels is not None
        write_clip(
            path,
            made.pixels,
            made.waveform,
            frame_rate=made.frame_rate,
            sample_rate=made.sample_rate,
            metadata=made.metadata,
            crf=crf,
        )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generated clip."""

    pixels: Float[Tensor, "3 f h w"] | None  # RGB in [-1, 1], float32, CPU; None if there is only sound
    waveform: (
        Float[Tensor, "2 samples"] | None
    )  # [-1, 1], float32, CPU, as long as the picture; None if silent
    sample_rate: int  # Hz
    frame_rate: Fraction
    request: GenerationRequest
    model: str
    notes: tuple[str, ...] = ()  # what was done otherwise than asked, for people
    weights: str = ""  # a fingerprint of those it was made with
    start: float = 0.0  # seconds into the file: a retake holds only the part that was worked on
    delivery: Delivery = NewClip()

    @property
    def frames(self) -> Frames:
        """The picture in 8 bits, (f, h, w, 3).

        Raises:
            RequestError: There is only sound.
        """
        if self.pixels is None:
            raise RequestError("this generation has no picture, only sound")
        return to_frames(self.pixels)

    @property
    def duration(self) -> float:
        """Seconds."""
        if self.pixels is not None:
            return float(self.pixels.shape[1] / self.frame_rate)
        assert self.waveform is not None
        return self.waveform.shape[1] / self.sample_rate

    @property
    def metadata(self) -> dict[str, Any]:
        """What made the clip; written into every file, without a date: equal runs give equal files."""
        return metadata_of(self.request, self.model, self.notes, self.weights)

    def save(self, path: str | Path, *, crf: int = 18) -> Path:
        """Write the clip to an .mp4, or its sound alone to a .wav; all of it or nothing.

        Args:
            crf: Quality of the picture: 0 is lossless, 18 visually so.

        Raises:
            RequestError: The name ends in something else, or there is nothing of that kind to write.
            MediaError: The clip cannot be encoded.
            ResourceError: The disk is full or refuses the write.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".mp4", ".wav"):
            raise RequestError(f"output {path} ends neither in .mp4 nor in .wav")
        if suffix == ".mp4":
            if self.pixels is None:
                raise RequestError(f"output {path} would have no picture; write sound to a .wav")
            self.delivery.write(path, self, crf)
        elif self.waveform is None:
            raise RequestError(f"output {path} would be empty, for the clip is silent; write it to an .mp4")
        else:
            write_wav(path, self.waveform, sample_rate=self.sample_rate, metadata=self.metadata)
        return path


def metadata_of(
    request: GenerationRequest, model: str, notes: tuple[str, ...], weights: str = ""
) -> dict[str, Any]:
    """Write down what makes a clip, without a date."""
    return {
        "request": request.to_dict(),
        "model": model,
        **({"weights": weights} if weights else {}),
        "versions": {"soundstage": soundstage.__version__, "torch": torch.__version__},
        "notes": list(notes),
    }


def fit_sound(waveform: Sound, num_samples: int, sample_rate: int) -> FittedSound:
    """Make a sound exactly as long as its clip.

    The audio decoder makes one mel frame of the first token and four of each other, so a sound ends 10 to
    50 ms before its picture. It is faded out over its last 5 ms, which hides the step, and followed by
    silence; a longer sound is cut and faded the same way.
    """
    fitted = waveform[..., :num_samples].clone()
    if waveform.shape[-1] == num_samples:
        return fitted
    length = min(round(FADE * sample_rate), fitted.shape[-1])
    ramp = torch.cos(torch.linspace(0, torch.pi / 2, length, device=fitted.device)) ** 2
    fitted[..., fitted.shape[-1] - length :] *= ramp
    return torch.nn.functional.pad(fitted, (0, num_samples - fitted.shape[-1]))
