"""Sizes: the clip that was asked for, what the model's grid makes of it, and the windows of a long one."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from jaxtyping import Float
from torch import Tensor

from soundstage.checkpoints.generation import SamplingDefaults
from soundstage.core.errors import RequestError
from soundstage.core.geometry import AudioGeometry, VideoGeometry, num_audio_samples, parse_frame_rate
from soundstage.pipelines.conditions import VideoGrid
from soundstage.pipelines.request import GenerationRequest

ClipPixels = Float[Tensor, "3 frames height width"]
CutPixels = Float[Tensor, "3 cut_frames cut_height cut_width"]

OVERLAPS = (25, 17, 33)  # frames, in the order of preference
Size = tuple[int, int, int]  # frames, height, width in pixels


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A long clip in parts that are generated one after the other, each taking over the end of the last.

    |----- window 0 -----|
                 |overlap|-- window 1 --|
    |-- advance -|               |overlap|-- window 2 --|
    """

    num_frames: int  # of every window; 8 k + 1 in official models, 4 k + 1 in the one inside
    overlap: int  # frames that two windows share; likewise
    count: int

    @property
    def advance(self) -> int:
        """Frames from the beginning of a window to that of the next."""
        return self.num_frames - self.overlap

    @classmethod
    def of(
        cls,
        request: GenerationRequest,
        defaults: SamplingDefaults,
        geometry: VideoGeometry,
        audio: AudioGeometry,
        num_frames: int,
        frame_rate: Fraction,
    ) -> "Windows | None":
        """Cut a clip into windows if it is longer than clips were in training, or than the window asked for.

        Raises:
            RequestError: The overlap does not fit the window, or one does not fit a grid that is insisted on.
        """
        step = geometry.temporal_factor
        longest = _longest_clip(defaults, step / frame_rate)
        if request.window is None and num_frames / frame_rate <= longest:
            return None
        window = geometry.fit_num_frames(request.window or defaults.num_frames)
        if num_frames <= window:
            return None
        if request.snap == "error":
            for name, frames in _asked_windows(request).items():
                geometry.check_num_frames(frames, name)
        if request.overlap is None:
            overlap = _best_overlap(window, step, audio.latents_per_second / frame_rate)
        else:
            overlap = geometry.fit_num_frames(request.overlap)
        if not step < overlap <= window - step:
            raise RequestError(
                f"overlap={request.overlap or overlap} frames do not suit windows of {window}; "
                f"it can be {step + 1} to {window - step}"
            )
        return cls(
            num_frames=window,
            overlap=overlap,
            count=math.ceil((num_frames - overlap) / (window - overlap)),
        )


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The clip that was asked for, and the slightly larger one that the model's grid makes of it."""

    num_frames: int
    height: int
    width: int
    frame_rate: Fraction
    grid: VideoGrid  # of what is generated at once
    first_grid: VideoGrid  # the same in the first stage, smaller if there is a second
    windows: Windows | None = None  # of a long clip; the grids are then those of one window
    notes: tuple[str, ...] = ()  # what was done otherwise than asked, for people

    @classmethod
    def of(
        cls,
        request: GenerationRequest,
        defaults: SamplingDefaults,
        geometry: VideoGeometry,
        *,
        scale: Fraction = Fraction(1),
        audio: AudioGeometry | None = None,
    ) -> "Canvas":
        """Settle size, length and rate.

        Args:
            scale: By how much the second stage is larger than the first; 1 without one. A size that is not
                asked for is then the default size, enlarged.

        Raises:
            RequestError: They do not fit the grid and the request wants that to be an error.
        """
        rate = parse_frame_rate(request.frame_rate or defaults.frame_rate)
        frames = request.frames_at(rate) or defaults.num_frames
        height = request.height or math.ceil(defaults.height * scale)
        width = request.width or math.ceil(defaults.width * scale)
        windows = Windows.of(request, defaults, geometry, audio or AudioGeometry(), frames, rate)
        (low, high), (left, right) = (_fit(extent, geometry, scale) for extent in (height, width))
        padded = (geometry.fit_num_frames(frames), high, right)
        if request.snap == "error":
            _check_fit((frames, height, width), padded, geometry, scale)
        at_once = windows.num_frames if windows else padded[0]
        return cls(
            num_frames=frames,
            height=height,
            width=width,
            frame_rate=rate,
            grid=VideoGrid.of(geometry, at_once, high, right, rate),
            first_grid=VideoGrid.of(geometry, at_once, low, left, rate),
            windows=windows,
            notes=(
                *_notes((frames, height, width), padded, rate, defaults, geometry, scale, windows),
                *(_rounding_notes(request, geometry) if windows else ()),
            ),
        )

    @property
    def padded_frames(self) -> int:
        """Frames that are generated at once."""
        return self.grid.geometry.num_pixel_frames(self.grid.num_latent_frames)

    @property
    def num_windows(self) -> int:
        """Parts that are generated one after the other."""
        return self.windows.count if self.windows else 1

    def num_samples(self, sample_rate: int, num_frames: int | None = None) -> int:
        """Samples of a sound track exactly as long as the clip, or as its first frames."""
        frames = self.num_frames if num_frames is None else num_frames
        return num_audio_samples(frames, self.frame_rate, sample_rate)

    def cut(self, pixels: ClipPixels, begin: int = 0) -> CutPixels:
        """Cut the clip that was asked for out of the generated one: the middle of its first frames.

        Args:
            begin: Frame of the generated clip with which `pixels` begin, if they are a part of it.
        """
        top = (pixels.shape[2] - self.height) // 2
        left = (pixels.shape[3] - self.width) // 2
        frames = max(self.num_frames - begin, 0)
        return pixels[:, :frames, top : top + self.height, left : left + self.width]


def enlarge(extent: int, scale: Fraction) -> int:
    """Say how many latent cells an upsampler makes of that many."""
    return -(-extent * scale.numerator // scale.denominator)


def _fit(extent: int, geometry: VideoGeometry, scale: Fraction) -> tuple[int, int]:
    """Find the smallest extent of the first stage whose enlargement holds `extent` pixels; return both."""
    cells = math.ceil(extent / geometry.token_size / scale) * geometry.patch_size
    while True:
        enlarged = enlarge(cells, scale)
        if enlarged % geometry.patch_size == 0 and enlarged * geometry.spatial_factor >= extent:
            return cells * geometry.spatial_factor, enlarged * geometry.spatial_factor
        cells += geometry.patch_size


def _best_overlap(window: int, step: int, tokens_per_frame: Fraction | float) -> int:
    """Prefer overlaps after which the grid of the sound's tokens falls into step with that of the frames."""

    def misfit(overlap: int) -> float:
        tokens = float((window - overlap) * tokens_per_frame)
        return round(abs(tokens - round(tokens)), 3)

    possible = [overlap for overlap in OVERLAPS if overlap <= window - step]
    return min(possible, key=misfit) if possible else step + 1


def _longest_clip(defaults: SamplingDefaults, latent_frame: Fraction) -> Fraction:
    """Return the seconds up to which a clip is made at once.

    Args:
        latent_frame: Its seconds; the last one may begin as late as those of training did.
    """
    return Fraction(defaults.longest).limit_denominator(10_000) + latent_frame


def _beyond_note(seconds: Fraction | float, longest: Fraction) -> list[str]:
    """Say that a clip is longer than those of training, if it is."""
    if seconds <= longest:
        return []
    return [f"{float(seconds):.1f} s is beyond the {float(longest):.3g} s that the model was trained for"]


def _check_fit(asked: Size, padded: Size, geometry: VideoGeometry, scale: Fraction) -> None:
    geometry.check_num_frames(asked[0])
    geometry.check_size(asked[1], asked[2])
    if asked[1:] != padded[1:]:
        raise RequestError(
            f"{asked[2]}x{asked[1]} cannot be reached by enlarging {float(scale):g} times; "
            f"the next that can is {padded[2]}x{padded[1]}"
        )


def _asked_windows(request: GenerationRequest) -> dict[str, int]:
    """Return what a request says about its windows, in frames."""
    asked = {"window": request.window, "overlap": request.overlap}
    return {name: frames for name, frames in asked.items() if frames is not None}


def _rounding_notes(request: GenerationRequest, geometry: VideoGeometry) -> Iterator[str]:
    for name, frames in _asked_windows(request).items():
        if (fitting := geometry.fit_num_frames(frames)) != frames:
            yield f"{name}={frames} is not {geometry.temporal_factor} k + 1 frames: it is {fitting} instead"


def _notes(
    asked: Size,
    padded: Size,
    rate: Fraction,
    defaults: SamplingDefaults,
    geometry: VideoGeometry,
    scale: Fraction,
    windows: Windows | None,
) -> Iterator[str]:
    frames, height, width = asked
    if padded[1:] != (height, width):
        stages = f" in stages of 1 and {float(scale):g}" if scale != 1 else ""
        yield (
            f"{width}x{height} does not fit the grid of {geometry.token_size} pixels{stages}: generated at "
            f"{padded[2]}x{padded[1]}, then cut to the middle"
        )
    if padded[0] != frames and windows is None:
        yield (
            f"{frames} frames are not {geometry.temporal_factor} k + 1: generated {padded[0]}, "
            f"then cut to the first {frames}"
        )
    beyond = _beyond_note(frames / rate, _longest_clip(defaults, geometry.temporal_factor / rate))
    if windows is not None:
        parts = (
            f"{windows.count} windows of {windows.num_frames} frames that share {windows.overlap} "
            "with the one before"
        )
        yield ": ".join((*beyond, f"generated in {parts}"))
    else:
        yield from beyond
