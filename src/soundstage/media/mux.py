"""Join picture and sound in one MP4 whose two streams start together and end together.

An AAC encoder delays its input by 1,024 samples. The container undoes that with an edit list, which
libavformat only writes when the packets carry negative timestamps, and the encoder only makes those when
every frame that goes in has a `pts` and a `time_base`. Without them the sound is late, at 24 kHz by 43 ms.

The same input gives the same bytes: no creation time, no encoder banner, a fixed number of encoder threads
(x264's output depends on it).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from soundstage.core.errors import MediaError, RequestError
from soundstage.core.files import atomic_output
from soundstage.core.geometry import num_audio_samples
from soundstage.media.audio import StereoWaveform, clip_waveform
from soundstage.media.video import ClipPixels, Frames, to_frames

AAC_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_AAC_FRAME = 1024  # samples
_AAC_BIT_RATE = 192_000  # bits per second, stereo
_ENCODER_THREADS = 4  # a constant, not the number of cores: see the module's docstring
_CHUNK = 8  # frames converted at once, so that a long clip is never held twice
_BT709 = 1  # the code of BT.709 for primaries, transfer and matrix in H.264, table E-3 ff.
_LIMITED = 1  # AVCOL_RANGE_MPEG


def write_clip(
    path: Path,
    video: ClipPixels | Frames | Iterable[Tensor],
    waveform: StereoWaveform | None,
    *,
    frame_rate: Fraction,
    sample_rate: int = 48_000,
    metadata: Mapping[str, Any] | None = None,
    crf: int = 18,
) -> None:
    """Write H.264 and AAC, the sound cut or padded with silence to exactly the length of the picture.

    Pictures of even size are stored as 4:2:0, which everything plays. An odd width or height does not fit
    4:2:0; such clips are stored as 4:4:4, because the file then has the size that was asked for (ffmpeg plays
    it, some players do not).

    Args:
        video: Pixels in [-1, 1] or 8-bit frames; one tensor, or chunks of the clip in order.
        waveform: Stereo in [-1, 1], clipped; None writes no sound track.
        metadata: JSON-ready data for the `comment` tag, read back by `read_metadata`.
        crf: x264's constant rate factor: 0 is lossless, 18 is visually so, 51 the worst.

    Raises:
        MediaError: The input is empty, not finite or changes size, or the encoder refuses it.
        RequestError: AAC does not know the sample rate.
        ResourceError: The disk is full or refuses the write.
    """
    parts = [(video, waveform)]
    write_parts(path, parts, frame_rate=frame_rate, sample_rate=sample_rate, metadata=metadata, crf=crf)


def write_parts(
    path: Path,
    parts: Iterable[tuple[ClipPixels | Frames | Iterable[Tensor], StereoWaveform | None]],
    *,
    frame_rate: Fraction,
    sample_rate: int = 48_000,
    metadata: Mapping[str, Any] | None = None,
    crf: int = 18,
) -> None:
    """Write a clip that comes in parts, holding one at a time; see `write_clip`.

    Args:
        parts: Picture and sound in order. They need not be cut at the same moment: what a part's sound lacks
            comes with a later part. Without sound in the first part the clip has no sound track.

    Raises:
        MediaError: The input is empty, not finite or changes size, or the encoder refuses it.
        RequestError: AAC does not know the sample rate.
        ResourceError: The disk is full or refuses the write.
    """
    import av

    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    # Edit lists count in units of the movie clock; the default of 1 ms would round the sound's length.
    options["movie_timescale"] = str(math.lcm(frame_rate.numerator, sample_rate))
    try:
        with (
            atomic_output(path) as temporary,
            av.open(str(temporary), "w", format="mp4", container_options=options) as container,
        ):
            if metadata is not None:
                container.metadata["comment"] = json.dumps(metadata, sort_keys=True)
            _write_streams(container, iter(parts), frame_rate, sample_rate, crf)
    except av.FFmpegError as error:
        raise MediaError(f"cannot encode {path}: {error.strerror or error}") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the JSON that `write_clip` or `write_wav` stored; an empty dict where there is none.

    Raises:
        MediaError: The file is missing or is not a media file.
    """
    import av

    try:
        with av.open(str(path)) as container:
            comment = container.metadata.get("comment") or "{}"
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        data = json.loads(comment)
    except json.JSONDecodeError:
        data = comment
    return data if isinstance(data, dict) else {"comment": comment}


def _write_streams(
    container: Any,
    parts: Iterator[tuple[ClipPixels | Frames | Iterable[Tensor], StereoWaveform | None]],
    frame_rate: Fraction,
    sample_rate: int,
    crf: int,
) -> None:
    """Encode both streams side by side, so that neither has to be buffered until the other is done."""
    picture: _VideoTrack | None = None
    sound: _SoundTrack | None = None
    for video, waveform in parts:
        if picture is not None and sound is not None and waveform is not None:
            sound.feed(waveform)
        for frame in _single_frames(video):
            if picture is None:
                height, width = frame.shape[:2]
                picture = _VideoTrack(container, height, width, frame_rate, crf)
                sound = None if waveform is None else _SoundTrack(container, waveform, sample_rate)
            picture.write(frame)
            if sound is not None:
                sound.write_until(num_audio_samples(picture.num_frames, frame_rate, sample_rate))
    if picture is None:
        raise MediaError("the video has no frames")
    picture.finish()
    if sound is not None:
        sound.finish(num_audio_samples(picture.num_frames, frame_rate, sample_rate))


class _VideoTrack:
    """H.264 in BT.709, one tick of the clock per frame."""

    def __init__(self, container: Any, height: int, width: int, frame_rate: Fraction, crf: int) -> None:
        self._container = container
        self._size = (height, width)
        self._time_base = 1 / frame_rate
        options = {"crf": str(crf), "preset": "medium", "threads": str(_ENCODER_THREADS)}
        self._stream = container.add_stream("libx264", rate=frame_rate, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        codec = self._stream.codec_context
        codec.time_base = self._time_base
        codec.color_primaries = codec.color_trc = codec.colorspace = _BT709
        codec.color_range = _LIMITED
        self.num_frames = 0

    def write(self, rgb: UInt8[Tensor, "h w 3"]) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace

        if tuple(rgb.shape[:2]) != self._size:
            was, now = ("x".join(map(str, reversed(size))) for size in (self._size, rgb.shape[:2]))
            raise MediaError(f"frame {self.num_frames} is {now}, the frames before it are {was}")
        frame = av.VideoFrame.from_ndarray(rgb.numpy(), format="rgb24").reformat(
            format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base, frame.duration = self.num_frames, self._time_base, 1
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))


class _SoundTrack:
    """AAC, fed in whole codec frames that say when they are."""

    def __init__(self, container: Any, waveform: StereoWaveform, sample_rate: int) -> None:
        if sample_rate not in AAC_SAMPLE_RATES:
            near = min(AAC_SAMPLE_RATES, key=lambda rate: abs(rate - sample_rate))
            raise RequestError(f"sample_rate={sample_rate} is not one of AAC's; the nearest is {near}")
        self._container = container
        self._waveform = clip_waveform(waveform)  # what is not encoded yet
        self._sample_rate = sample_rate
        self._stream = container.add_stream("aac", rate=sample_rate, layout="stereo")
        # AAC holds at most 12 bits per stereo sample; 8 keeps low rates well inside.
        self._stream.bit_rate = min(_AAC_BIT_RATE, 8 * sample_rate)
        self._stream.codec_context.time_base = Fraction(1, sample_rate)
        self._written = 0

    def feed(self, waveform: StereoWaveform) -> None:
        """Take what follows the samples that are there."""
        self._waveform = torch.cat([self._waveform, clip_waveform(waveform)], dim=1)

    def write_until(self, num_samples: int) -> None:
        """Encode the whole codec frames that end by then, as far as their samples are there."""
        while self._written + _AAC_FRAME <= num_samples and self._waveform.shape[1] >= _AAC_FRAME:
            self._encode(_AAC_FRAME)

    def finish(self, num_samples: int) -> None:
        """Encode the rest, the last codec frame shortened, so that the track has `num_samples`."""
        while num_samples > self._written:
            self._encode(min(_AAC_FRAME, num_samples - self._written))
        self._container.mux(self._stream.encode(None))

    def _encode(self, count: int) -> None:
        import av

        samples, self._waveform = self._waveform[:, :count], self._waveform[:, count:]
        samples = torch.nn.functional.pad(samples, (0, count - samples.shape[1])).contiguous()
        frame = av.AudioFrame.from_ndarray(samples.numpy(), format="fltp", layout="stereo")
        frame.sample_rate = self._sample_rate
        frame.pts, frame.time_base = self._written, Fraction(1, self._sample_rate)
        self._container.mux(self._stream.encode(frame))
        self._written += count


def _single_frames(
    video: ClipPixels | Frames | Iterable[Tensor],
) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """Yield 8-bit frames one by one from a clip or from chunks of one."""
    for chunk in [video] if isinstance(video, Tensor) else video:
        if chunk.dtype == torch.uint8:
            yield from chunk.cpu().contiguous()
        else:
            for start in range(0, chunk.shape[1], _CHUNK):
                yield from to_frames(chunk[:, start : start + _CHUNK])
